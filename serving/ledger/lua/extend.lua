-- Tells how far open requests are, and gives them a later lease.
-- ARGV: time, lease in us, then ACCOUNT:REQUEST, completion, ... Answers: ok, how many are open.

local lease = int(NOW_US + tonumber(ARGV[2]))
local open = 0
for at = 3, #ARGV, 2 do
  local record = key_of('hold', ARGV[at])
  local known = redis.call('HMGET', record, 'state', 'noted')
  if known[1] == 'open' then
    open = open + 1
    if tonumber(ARGV[at + 1]) > tonumber(known[2]) then redis.call('HSET', record, 'noted', ARGV[at + 1]) end
    redis.call('ZADD', KEYS[1], lease, ARGV[at])
  end
end
return {'ok', open}
