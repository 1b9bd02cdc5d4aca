-- Appends to the books: the time, then the fields of a posting from its kind on.
local function post(of_account, ...)
  call('XADD', SLOT .. 'postings:' .. of_account, '*', 'p', pack(NOW_MS, ...))
end

