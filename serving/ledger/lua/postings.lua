-- A page of an account's books, oldest first. ARGV: time, account, after which id ('' for the first page), most at once.
-- Answers: ok, then for each posting its id and its fields.

local start = ARGV[3] == '' and '-' or '(' .. ARGV[3]
local answer = {'ok'}
for _, entry in ipairs(call('XRANGE', SLOT .. 'postings:' .. ARGV[2], start, '+', 'COUNT', ARGV[4])) do
  answer[#answer + 1] = {entry[1], unpack(entry[2][2])}
end
return answer
