"""The callers of the API: who they are, what they may do, and how much.

admission.py     who may call a route, and what is charged
keys.py          keys as hashes, with their scopes and their expiry
current_keys.py  the keys as their file has them now
rates.py         the rate of each key
local.py         who may call a server without keys
"""
