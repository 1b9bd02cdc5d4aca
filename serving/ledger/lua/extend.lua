-- Tells how far open requests are, and gives them a later lease.
-- ARGV: time, lease in us, then ACCOUNT:REQUEST, completion, ... Answers: ok, how many are open.

local lease = NOW_US + ARGV[2]
local open = 0
for at = 3, #ARGV, 2 do
  local hold_at = SLOT .. 'hold:' .. ARGV[at]
  local known = call('GET', hold_at)
  local $hold
  if known then $hold = unpack(known) end
  if status == 'open' then
    open = open + 1
    local completion = tonumber(ARGV[at + 1])
    if completion > noted then
      noted = completion
      call('SET', hold_at, pack($hold))
    end
    call('ZADD', KEYS[1], lease, ARGV[at])
  end
end
return {'ok', open}
