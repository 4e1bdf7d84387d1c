"""Attacks on the line protocol itself (docs/ops-protocol.md §1).

Each entry is (raw line, code that must come back, or None for a success).
"""

import json

GAE = '{"op":"gae","args":{"rewards":%s,"values":[[1]]}}'


def lines(rng):
    bad = "INVALID_ARGUMENT"
    yield b"", bad
    yield b"   ", bad
    yield b"\t", bad
    for text in ("{", "}", "[]", "null", "true", "1", '"gae"', "nan", "NaN",
                 "-inf", "{]", '{"op":"gae"', '{"op":"gae",}', "{'op':1}",
                 '{"op":"gae"} {"op":"gae"}', '{"op":"version"}x',
                 '{"op":"version"},', "// c", '/* */{"op":"version"}'):
        yield text.encode(), bad
    for value in ("[[NaN]]", "[[Infinity]]", "[[-Infinity]]", "[[1e999]]",
                  "[[-1e999]]", "[[0x10]]", "[[01]]", "[[1.]]", "[[.5]]",
                  "[[+1]]", "[[1e]]", "[[tru]]", '[["1"]]', '[["Inf"]]',
                  '[["NAN"]]', "[[true]]", "[[null]]", "[[{}]]", "[[[1]]]",
                  "[1]", "1", "{}", '"x"', "null", "[[1],[]]", "[[1],2]",
                  '[["nan"]]', '[["inf"]]'):
        yield (GAE % value).encode(), bad
    yield b'{"op":"version","args":{}}', None
    yield b'{"op":"version","args":null}', None
    yield b'{"op":"version","args":{"x":1}}', bad
    yield b'{"op":"version","args":[]}', bad
    yield b'{"op":"version","args":"x"}', bad
    yield b'{"op":null}', bad
    yield b'{"op":["gae"]}', bad
    yield b'{"args":{}}', bad
    yield b'{"op":""}', ("UNIMPLEMENTED", bad)
    yield b'{"op":"gae\\u0000"}', ("UNIMPLEMENTED", bad)
    yield b'{"op":"no_such"}', ("UNIMPLEMENTED", bad)
    yield b"\x00", bad
    yield b"\x00\x01\x02\x7f\x1b[0m", bad
    yield b"\xff\xfe\xfd", bad
    yield b'{"op":"\xc3\x28"}', (bad, "UNIMPLEMENTED")
    yield b'{"op":"version","id":"\xff\xfe"}', bad
    yield b'\xef\xbb\xbf{"op":"version"}', (bad, None)
    yield b'{"op":"version"}\r', (None, bad)
    yield b'{"op":"version","id":"\\ud800"}', bad
    yield b'{"op":"version","id":1e999}', bad
    yield b'{"op":"version","id":' + b"9" * 400 + b"}", (bad, None)
    yield b'{"op":"version","id":-0.0}', None
    for n in (65, 1000, 100000, 2000000):
        yield b"[" * n, bad
        yield b'{"a":' * min(n, 300000), bad
        yield (b'{"op":"version","id":' + b"[" * n + b"]" * n + b"}"), \
            (bad, None)
    yield b'{"op":"version","id":"' + b"[" * 100000 + b'"}', None
    yield b'{"op":"version","id":"' + b"x" * 8000000 + b'"}', None
    yield (GAE % ("[" + "[1]," * 300000 + "[1]]")).encode(), bad
    yield b'{"' + b"k" * 1000000 + b'":1}', bad
    yield b'"' + b"\\" * 1000001, bad
    # Arguments at the edge of their types.
    whole = json.dumps
    for name, value in (("dtype", 3), ("dtype", "float16"), ("dtype", "bf16"),
                        ("gamma", "0.5"), ("gamma", True), ("gamma", [1]),
                        ("mask", [[2]]), ("mask", [["1"]]), ("mask", "x"),
                        ("mask", [[-1]]), ("Gamma", 1), ("", 1),
                        ("rewards\u0000", 1)):
        args = {"rewards": [[1]], "values": [[1]], name: value}
        yield whole({"op": "gae", "args": args}).encode(), bad
    for value in (1e300, -1, 2 ** 63, 2 ** 64, 0.5, "1", None, [], "nan"):
        args = {"x": [[1, 2]], "world": value}
        yield (whole({"op": "whiten", "args": args}).encode(),
               None if value is None else bad)
    yield (whole({"op": "gae", "args": {"rewards": [[1e300]],
                                        "values": [[1]],
                                        "dtype": "float32"}}).encode(), bad)
    # Random mutations of a good line: any answer, but one.
    good = (GAE % "[[1]]").encode()
    for _ in range(300):
        b = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            i = rng.randrange(len(b))
            action = rng.randrange(3)
            if action == 0:
                b[i] = rng.choice([c for c in range(256) if c != 10])
            elif action == 1:
                del b[i]
            else:
                b.insert(i, rng.choice(b'{}[]",:0e-\\'))
        yield bytes(b), "any"
