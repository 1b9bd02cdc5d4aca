-- Gives a hold back of which nothing was used. A hold that is not there yet, since its command was overtaken, will be
-- refused. ARGV: time, account, request.
-- Parts: calendar meter posting tab credit resolve

local name = ARGV[2] .. ':' .. ARGV[3]
local known = call('GET', SLOT .. 'hold:' .. name)
if known then
  resolve(name, {known}, nil, 'released', 'release', 0, 0, 0)
else
  local $hold
  status, account = 'released', ARGV[2]
  cost, used_prompt, used_cached, used_completion = 0, 0, 0, 0
  call('SET', SLOT .. 'hold:' .. name, pack($hold), 'EX', REMEMBER_S)
end
return {'ok'}
