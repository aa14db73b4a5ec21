-- audit: the ledger and what is physically there, at one moment. Changes nothing.
--
-- KEYS  1 frames  2 ledger  3 gaps  4 dead   (fields: see offer.lua)
-- ARGV  1 group  2 prefix of the keys that say who lives
-- returns {ledger as field, value, …; frames outstanding; gaps; frames in dead; workers alive}
local alive = {}
if redis.call('EXISTS', KEYS[1]) == 1 then
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    if group[2] == ARGV[1] then
      for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
        if redis.call('EXISTS', ARGV[2] .. row[2]) == 1 then alive[#alive + 1] = row[2] end
      end
    end
  end
end
return {
  redis.call('HGETALL', KEYS[2]), redis.call('XLEN', KEYS[1]),
  redis.call('LRANGE', KEYS[3], 0, -1), redis.call('XLEN', KEYS[4]), alive,
}
