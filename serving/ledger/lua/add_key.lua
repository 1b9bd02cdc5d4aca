-- Stores a key. ARGV: time, account, id, name, shown, digest, models (JSON or ''), cap ('' for none), expiry in ms (0
-- for never). Answers: ok | no account | conflict.

local account, id, digest = ARGV[2], ARGV[3], ARGV[6]
if redis.call('EXISTS', key_of('account', account)) == 0 then return {'no account'} end
local record, digests = key_of('key', id), TAG .. ':digests'
if redis.call('EXISTS', record) == 1 or redis.call('HEXISTS', digests, digest) == 1 then return {'conflict'} end
redis.call(
  'HSET', record, 'account', account, 'name', ARGV[4], 'shown', ARGV[5], 'digest', digest, 'created', int(NOW_MS),
  'models', ARGV[7], 'cap', ARGV[8], 'expires', ARGV[9], 'revoked', '0', 'last', '0', 'used', '0', 'held', '0'
)
redis.call('HSET', digests, digest, id)
redis.call('SADD', key_of('keys', account), id)
return {'ok'}
