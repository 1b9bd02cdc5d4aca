-- All keys of an account. ARGV: time, account. Answers: ok, a row for each.
-- Parts: keys

local answer = {'ok'}
for _, id in ipairs(call('SMEMBERS', SLOT .. 'keys:' .. ARGV[2])) do answer[#answer + 1] = key_row(id) end
return answer
