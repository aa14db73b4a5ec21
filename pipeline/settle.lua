-- settle: publish verdicts and take their frames off, each only while the frame is still this worker's.
-- Atomic; returns 1 per frame settled now, 0 per late twin (settled before, or another worker's by now).
--
-- KEYS  1 frames  2 ledger  3 verdicts   (fields: see offer.lua)
-- ARGV  1 group  2 worker  3 verdicts to keep
--       then per frame: token, source, size in bytes, judgement, reason, header, body
local group, worker, keep = ARGV[1], ARGV[2], ARGV[3]
local delta, settled = {}, {}

local function add(field, n) delta[field] = (delta[field] or 0) + n end

for i = 4, #ARGV, 7 do
  local token, source, judgement, reason = ARGV[i], ARGV[i + 1], ARGV[i + 3], ARGV[i + 4]
  local mine = redis.call('XPENDING', KEYS[1], group, token, token, 1, worker)
  if #mine == 1 then
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', keep, '*', 'h', ARGV[i + 5], 'v', ARGV[i + 6])
    redis.call('XACK', KEYS[1], group, token)
    redis.call('XDEL', KEYS[1], token)
    add('bytes', -tonumber(ARGV[i + 2]))
    add('judged|' .. judgement .. '|' .. source, 1)
    if reason ~= '' then add('reason|' .. judgement .. ' ' .. reason, 1) end
  end
  settled[#settled + 1] = #mine
end
for field, n in pairs(delta) do redis.call('HINCRBY', KEYS[2], field, n) end
return settled
