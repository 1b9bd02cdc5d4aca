"""Scripts that the ledger's are measured beside."""

TRIVIAL = {
    "trivial": "return ARGV[4]",
    "trivial with a write": "redis.call('SET', KEYS[1] .. ':trivial', ARGV[4]) return ARGV[4]",
}
BARE = {
    "hold": """
        local slot, name = string.sub(KEYS[1], 1, -4), ARGV[2] .. ':' .. ARGV[4]
        local hold, account, key = slot .. 'hold:' .. name, slot .. 'account:' .. ARGV[2], slot .. 'key:' .. ARGV[3]
        redis.call('TIME')
        redis.call('MGET', hold, account, key)
        redis.call('MSET', hold, '{hold}', account, '{account}', key, '{key}')
        redis.call('ZADD', KEYS[1], '1700000000000000', name)
        return {{'ok', 1, 2, 3, 4, 5, 6}}
    """,
    "settle": """
        local slot, name = string.sub(KEYS[1], 1, -4), ARGV[2] .. ':' .. ARGV[3]
        local hold, account, key = slot .. 'hold:' .. name, slot .. 'account:' .. ARGV[2], slot .. 'key:' .. ARGV[8]
        redis.call('TIME')
        redis.call('MGET', hold, account, key)
        redis.call('XADD', slot .. 'postings:' .. ARGV[2], '*', 'p', '{posting}')
        redis.call('ZREM', KEYS[1], name)
        redis.call('MSET', account, '{account}', key, '{key}')
        redis.call('SET', hold, '{hold}', 'EX', '86400')
        return {{'ok', 1, 2, 3, 4}}
    """,
}
"""The commands of the scripts in `serving/ledger/lua` on the same keys, with records to be filled in: what stands there
is of no use afterwards."""
