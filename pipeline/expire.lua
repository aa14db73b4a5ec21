-- expire: give frames whose deadline comes their fail-safe verdict, whoever holds them or nobody. Atomic.
-- Returns {how many, µs until the next frame is due here; -1: none has a deadline}. The clock is the server's.
-- Frames go off before verdicts come in: a server out of memory takes no script that starts with an addition.
--
-- KEYS  1 frames  2 ledger  3 verdicts  4 deadlines  5 late   (fields: see offer.lua and settle.lua)
-- ARGV  1 group  2 verdicts to keep  3 tokens to keep in late
--       4 how long before its deadline, µs, if nobody has taken the frame  5 … if a worker holds it, who may still
--       make it  6 how many at most  7 judgement  8 reason  9 body
local group, keep, keep_late = ARGV[1], ARGV[2], tonumber(ARGV[3])
local before, before_held, most = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local judgement, reason, body = ARGV[7], ARGV[8], ARGV[9]
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local expired = 0

local function digits(number) return string.format('%.0f', number) end

local function is_held(token)
  local pending = redis.pcall('XPENDING', KEYS[1], group, token, token, 1)
  return not pending.err and #pending == 1  -- an error: there is no group yet
end

local function publish(token, row, held, missed)
  local f = {}
  for i = 1, #row, 2 do f[row[i]] = row[i + 1] end
  for _, name in ipairs({'s', 'h', 'p'}) do f[name] = f[name] or '' end  -- one that is not ours
  redis.call('XDEL', KEYS[1], token)
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', keep, '*', 'h', f['h'], 'v', body)
  if held then
    redis.call('XACK', KEYS[1], group, token)
    redis.call('ZADD', KEYS[5], token:match('^%d+'), token)
    redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -keep_late - 1)
  end
  redis.call('HINCRBY', KEYS[2], 'bytes', -(#f['h'] + #f['p']))
  redis.call('HINCRBY', KEYS[2], 'judged|' .. judgement .. '|' .. f['s'], 1)
  redis.call('HINCRBY', KEYS[2], 'reason|' .. judgement .. ' ' .. reason, 1)
  if missed then redis.call('HINCRBY', KEYS[2], 'missed', 1) end
  expired = expired + 1
end

local next_due
local function due_in(us)
  if not next_due or us < next_due then next_due = us end
end

local near = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', digits(now + before), 'WITHSCORES', 'LIMIT', 0, 4 * most)
for i = 1, #near, 2 do
  if expired == most then  -- others want the server too
    due_in(0)
    break
  end
  local token, deadline = near[i], tonumber(near[i + 1])
  local held = is_held(token)
  if not held or deadline <= now + before_held then
    local entry = redis.call('XRANGE', KEYS[1], token, token)[1]
    if entry then publish(token, entry[2], held, deadline < now) end
    redis.call('ZREM', KEYS[4], token)
  else
    due_in(held and math.max(0, deadline - now - before_held) or 0)
  end
end
local later = redis.call('ZRANGEBYSCORE', KEYS[4], '(' .. digits(now + before), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
if later[2] then due_in(tonumber(later[2]) - now - before) end
return {expired, next_due or -1}
