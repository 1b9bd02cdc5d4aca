-- The key with a digest, and its account's plan and state. ARGV: time, digest.
-- Answers: ok, the key's row, its account's plan, state, created, used, held, running | no key.
-- Parts: keys

local id = call('HGET', SLOT .. 'digests', ARGV[2])
if not id then return {'no key'} end
local row = key_row(id)
local $account = unpack(call('GET', SLOT .. 'account:' .. row[2]))
return {'ok', row, plan, state, created, used, held, running}
