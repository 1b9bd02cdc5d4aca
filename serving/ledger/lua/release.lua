-- Gives a hold back of which nothing was used. A hold that is not there yet, since its command was overtaken, will be
-- refused. ARGV: time, account, request.

local name = ARGV[2] .. ':' .. ARGV[3]
local hold = find_hold(name)
if not hold then
  local record = key_of('hold', name)
  redis.call('HSET', record, 'state', 'released', 'account', ARGV[2], 'payload', '', 'cost', '0', 'usage', '0:0:0')
  redis.call('EXPIRE', record, REMEMBER_S)
elseif hold.state == 'open' then
  close(hold, 0, 0, 0, '', 'released')
elseif hold.state == 'reaped' then
  correct(hold, 0, 0, 0, 'release')
end
return {'ok'}
