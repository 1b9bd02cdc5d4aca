-- Stores a key. ARGV: time, account, id, name, shown, digest, models (JSON or ''), cap ('' for none), expiry in ms (0
-- for never). Answers: ok | no account | conflict.

local id, digests = ARGV[3], SLOT .. 'digests'
local key_at, label_at = SLOT .. 'key:' .. id, SLOT .. 'label:' .. id
if call('EXISTS', SLOT .. 'account:' .. ARGV[2]) == 0 then return {'no account'} end
if call('EXISTS', key_at) == 1 or call('HEXISTS', digests, ARGV[6]) == 1 then return {'conflict'} end
local $key
key_account, key_cap, key_expires, key_revoked = ARGV[2], tonumber(ARGV[8]) or '', tonumber(ARGV[9]), 0
key_last, key_used, key_held, tab = 0, 0, 0, ''
local $label
key_name, key_shown, key_digest, key_created, key_models = ARGV[4], ARGV[5], ARGV[6], NOW_MS, ARGV[7]
call('MSET', key_at, pack($key), label_at, pack($label))
call('HSET', digests, key_digest, id)
call('SADD', SLOT .. 'keys:' .. key_account, id)
return {'ok'}
