-- A key. ARGV: time, id. Answers: ok, its row | no key.
-- Parts: keys

local row = key_row(ARGV[2])
if not row then return {'no key'} end
return {'ok', row}
