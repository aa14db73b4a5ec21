-- settle: publish verdicts and take their frames off, each only while the frame is still this worker's.
-- Atomic; returns per frame 1: settled now; 2: it had its fail-safe verdict, this real answer is published as its
-- amendment; 0: a late twin (settled before, or another worker's by now), no effect.
-- Frames go off before verdicts come in: a server out of memory takes no script that starts with an addition.
--
-- KEYS  1 frames  2 ledger  3 verdicts   (fields: see offer.lua)
--       4 deadlines  5 late (zset of tokens whose fail-safe verdict is out and whose answer may come)
--       6 amendments (stream, as verdicts)
-- ARGV  1 group  2 worker  3 verdicts to keep  4 tokens to keep in late
--       then per frame: token, source, size in bytes, judgement, reason, '1' if fail-safe, header, body
local group, worker, keep, keep_late = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local delta, settled = {}, {}

local function add(field, n) delta[field] = (delta[field] or 0) + n end

local function is_late(token)
  local deadline = redis.call('ZSCORE', KEYS[4], token)
  if not deadline then return false end
  local now = redis.call('TIME')
  return tonumber(deadline) < now[1] * 1000000 + now[2]
end

for i = 5, #ARGV, 8 do
  local token, source, judgement, reason = ARGV[i], ARGV[i + 1], ARGV[i + 3], ARGV[i + 4]
  local fail_safe, header, body = ARGV[i + 5] == '1', ARGV[i + 6], ARGV[i + 7]
  local mine = redis.call('XPENDING', KEYS[1], group, token, token, 1, worker)
  local answer = #mine
  if answer == 1 then
    redis.call('XACK', KEYS[1], group, token)
    redis.call('XDEL', KEYS[1], token)
    if is_late(token) then add('missed', 1) end
    redis.call('ZREM', KEYS[4], token)
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', keep, '*', 'h', header, 'v', body)
    add('bytes', -tonumber(ARGV[i + 2]))
    add('judged|' .. judgement .. '|' .. source, 1)
    if reason ~= '' then add('reason|' .. judgement .. ' ' .. reason, 1) end
    if fail_safe then
      redis.call('ZADD', KEYS[5], token:match('^%d+'), token)
      redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -keep_late - 1)
    end
  elseif not fail_safe and redis.call('ZREM', KEYS[5], token) == 1 then
    redis.call('XADD', KEYS[6], 'MAXLEN', '~', keep, '*', 'h', header, 'v', body)
    add('amended|' .. judgement .. '|' .. source, 1)
    answer = 2
  end
  settled[#settled + 1] = answer
end
for field, n in pairs(delta) do redis.call('HINCRBY', KEYS[2], field, n) end
if delta['bytes'] and redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[2], 'bytes', 0)  -- entries that nobody offered were never added; they must not widen it
end
return settled
