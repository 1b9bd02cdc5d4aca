-- Revokes a key, once. ARGV: time, account, id. Answers: ok | no key.

local key_at = SLOT .. 'key:' .. ARGV[3]
local known = call('GET', key_at)
if not known then return {'no key'} end
local $key = unpack(known)
if key_account ~= ARGV[2] then return {'no key'} end
if key_revoked == 0 then
  key_revoked = NOW_MS
  call('SET', key_at, pack($key))
end
return {'ok'}
