-- reclaim: hand frames of workers that no longer live to this one; what was delivered too often is poison.
-- Atomic; returns {token, deliveries, source, header, pixels} per frame, oldest first per dead worker.
--
-- KEYS  1 frames  2 ledger  3 verdicts  4 dead (stream: s, h, p as frames)  5 deadlines   (fields: see offer.lua)
-- ARGV  1 group  2 worker  3 prefix of the keys that say who lives (same hash tag)  4 for how long, ms
--       5 how many at most  6 max deliveries  7 verdicts to keep  8 body for poison
--       9 '1': one frame on its last delivery may be among them (a worker never holds two)
--       10 bytes of poison to keep: beyond that the oldest goes, a larger frame is kept without its pixels
--       11 '1': also this worker's own frames whose delivery got lost on the way; then the tokens it does hold
local group, worker, prefix, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[5])
local max_deliveries, keep, poison_body, chance = tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9] == '1'
local taken, holds = {}, {}
local keep_dead = tonumber(ARGV[10])
for i = 12, #ARGV do holds[ARGV[i]] = true end

local function fields(row)
  local f = {}
  for i = 1, #row, 2 do f[row[i]] = row[i + 1] end
  return f
end

local function frame(row)
  local f = fields(row)
  return {s = f['s'] or '', h = f['h'] or '', p = f['p'] or ''}
end

local function take(token, deliveries, f)
  taken[#taken + 1] = {token, deliveries, f['s'], f['h'], f['p']}
end

local function keep_aside(f)
  local pixels = #f['h'] + #f['p'] <= keep_dead and f['p'] or ''
  redis.call('XADD', KEYS[4], '*', 's', f['s'], 'h', f['h'], 'p', pixels)
  local kept = redis.call('HINCRBY', KEYS[2], 'dead_bytes', #f['h'] + #pixels)
  while kept > keep_dead and redis.call('XLEN', KEYS[4]) > 1 do
    local oldest = redis.call('XRANGE', KEYS[4], '-', '+', 'COUNT', 1)[1]
    local o = frame(oldest[2])
    redis.call('XDEL', KEYS[4], oldest[1])
    kept = redis.call('HINCRBY', KEYS[2], 'dead_bytes', -(#o['h'] + #o['p']))
  end
end

local function bury(token, f)
  redis.call('XACK', KEYS[1], group, token)
  redis.call('XDEL', KEYS[1], token)
  redis.call('ZREM', KEYS[5], token)
  keep_aside(f)
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', keep, '*', 'h', f['h'], 'v', poison_body)
  redis.call('HINCRBY', KEYS[2], 'bytes', -(#f['h'] + #f['p']))
  redis.call('HINCRBY', KEYS[2], 'judged|UNINSPECTED|' .. f['s'], 1)
  redis.call('HINCRBY', KEYS[2], 'reason|UNINSPECTED poison', 1)
end

local function from_dead(name)
  for _, row in ipairs(redis.call('XPENDING', KEYS[1], group, '-', '+', 1000, name)) do
    local token, deliveries = row[1], row[4]
    local last, poison = deliveries + 1 >= max_deliveries, deliveries >= max_deliveries
    if poison or (#taken < most and (chance or not last)) then
      local entry = redis.call('XRANGE', KEYS[1], token, token)[1]
      if not entry then
        redis.call('XACK', KEYS[1], group, token)
      elseif poison then
        bury(token, frame(entry[2]))
      else
        redis.call('XCLAIM', KEYS[1], group, worker, 0, token, 'RETRYCOUNT', deliveries + 1, 'JUSTID')
        take(token, deliveries + 1, frame(entry[2]))
        chance = chance and not last
      end
    end
  end
end

local function lost_on_the_way()
  for _, row in ipairs(redis.call('XPENDING', KEYS[1], group, '-', '+', 100000, worker)) do
    if not holds[row[1]] and row[4] >= max_deliveries then chance = false end  -- one is enough, also beyond `most`
    local entry = not holds[row[1]] and #taken < most and redis.call('XRANGE', KEYS[1], row[1], row[1])[1]
    if entry then take(row[1], row[4], frame(entry[2])) end
  end
end

redis.call('SET', prefix .. worker, '1', 'PX', ARGV[4])
if ARGV[11] == '1' then lost_on_the_way() end
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], group)) do
  local consumer = fields(row)
  local name = consumer['name']
  if #taken < most and name ~= worker and redis.call('EXISTS', prefix .. name) == 0 then
    if consumer['pending'] > 0 then
      from_dead(name)
    else
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], group, name)
    end
  end
end
return taken
