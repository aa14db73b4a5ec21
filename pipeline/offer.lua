-- offer: add frames in order, or give them their verdict here and now. Atomic; returns how many were dealt with.
--
-- KEYS  1 frames    stream  s source, h header (msgpack), p pixels
--       2 ledger    hash    bytes                     bytes of all outstanding frames
--                           offered|SOURCE            frames ever offered
--                           judged|JUDGEMENT|SOURCE   verdicts ever published
--                           reason|JUDGEMENT REASON   of those, by reason
--                           next|SOURCE-SESSION       the sequence that comes next; lower ones were offered before
--       3 verdicts  stream  h the frame's header, v body (msgpack)
--                           missed                    verdicts that came after their frame's deadline
--                           dead_bytes                of the poison kept aside
--                           amended|JUDGEMENT|SOURCE  real answers that came after a fail-safe verdict
--       4 gaps      list    "SOURCE-SESSION first last" of sequences never offered
--       5 deadlines zset    token → µs since 1970, of outstanding frames that have a deadline
-- ARGV  1 policy  2 max bytes  3 max frames  4 verdicts to keep  5 body for shed  6 body for too large  7 group
--       then per frame: source, session, sequence, header, pixels, deadline in µs since 1970 (0: none)
local policy, max_bytes, max_frames, keep = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local shed_body, large_body, group = ARGV[5], ARGV[6], ARGV[7]
local held = tonumber(redis.call('HGET', KEYS[2], 'bytes') or '0')
local count = redis.call('XLEN', KEYS[1])
local delta, sequences = {}, {}

local function add(field, n) delta[field] = (delta[field] or 0) + n end

local function publish(source, header, body, reason)
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', keep, '*', 'h', header, 'v', body)
  add('judged|UNINSPECTED|' .. source, 1)
  add('reason|UNINSPECTED ' .. reason, 1)
end

local function last_delivered()
  if redis.call('EXISTS', KEYS[1]) == 0 then return '0-0' end
  for _, row in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local facts = {}
    for i = 1, #row, 2 do facts[row[i]] = row[i + 1] end
    if facts['name'] == group then return facts['last-delivered-id'] end
  end
  return '0-0'
end

local function shed_oldest()
  local oldest = redis.call('XRANGE', KEYS[1], '(' .. last_delivered(), '+', 'COUNT', 1)[1]
  if not oldest then return false end
  local f = {}
  for i = 1, #oldest[2], 2 do f[oldest[2][i]] = oldest[2][i + 1] end
  redis.call('XDEL', KEYS[1], oldest[1])
  redis.call('ZREM', KEYS[5], oldest[1])
  local header = f['h'] or ''  -- an entry that nobody offered may lack fields; an error here would undo nothing
  publish(f['s'] or '', header, shed_body, 'shed')
  local size = #header + #(f['p'] or '')
  held, count = held - size, count - 1
  add('bytes', -size)
  return true
end

local dealt = 0
for i = 8, #ARGV, 6 do
  local source, header, pixels = ARGV[i], ARGV[i + 3], ARGV[i + 4]
  local session, sequence = source .. '-' .. ARGV[i + 1], tonumber(ARGV[i + 2])
  local size = #header + #pixels
  local expected = sequences[session] or tonumber(redis.call('HGET', KEYS[2], 'next|' .. session) or '0')
  local function full() return held + size > max_bytes or count >= max_frames end
  if sequence >= expected then
    while policy == 'shed-oldest' and size <= max_bytes and full() and shed_oldest() do end
    if policy == 'wait' and size <= max_bytes and full() then break end
    if sequence > expected then
      redis.call('RPUSH', KEYS[4], session .. ' ' .. expected .. ' ' .. (sequence - 1))
    end
    sequences[session] = sequence + 1
    add('offered|' .. source, 1)
    if size > max_bytes then
      publish(source, header, large_body, 'too_large')
    elseif full() then
      publish(source, header, shed_body, 'shed')
    else
      local token = redis.call('XADD', KEYS[1], '*', 's', source, 'h', header, 'p', pixels)
      if ARGV[i + 5] ~= '0' then redis.call('ZADD', KEYS[5], ARGV[i + 5], token) end
      held, count = held + size, count + 1
      add('bytes', size)
    end
  end
  dealt = dealt + 1
end
for field, n in pairs(delta) do redis.call('HINCRBY', KEYS[2], field, n) end
for session, n in pairs(sequences) do redis.call('HSET', KEYS[2], 'next|' .. session, n) end
return dealt
