-- The key with a digest, and its account's plan and state. ARGV: time, digest.
-- Answers: ok, id, plan, state, created, used, held, running, then the key's fields and values | no key.

local id = redis.call('HGET', TAG .. ':digests', ARGV[2])
if not id then return {'no key'} end
local key = redis.call('HGETALL', key_of('key', id))
local account = redis.call('HGET', key_of('key', id), 'account')
local values = redis.call('HMGET', key_of('account', account), 'plan', 'state', 'created', 'used', 'held', 'running')
return {'ok', id, values[1], values[2], values[3], values[4], values[5], values[6], unpack(key)}
