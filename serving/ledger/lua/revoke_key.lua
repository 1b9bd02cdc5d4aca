-- Revokes a key, once. ARGV: time, account, id. Answers: ok | no key.

local record = key_of('key', ARGV[3])
local known = redis.call('HMGET', record, 'account', 'revoked')
if known[1] ~= ARGV[2] then return {'no key'} end
if known[2] == '0' then redis.call('HSET', record, 'revoked', int(NOW_MS)) end
return {'ok'}
