"""safetensors_cases.json: small files and parts of files, and whether the reference implementation opens them.

Expected is what the reference says, but for what the format forbids and the reference lets pass: a key that comes twice,
and a header that does not begin with '{'.
"""
import json
import struct

from safetensors import SafetensorError, deserialize

import common

MOST = 2**64 - 1


def tensor(dtype, shape, offsets, **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def file(header, data=b"", length=None):
    text = (header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def forbidden(data):
    """What the format's description says beyond the reference."""
    text = data[8:8 + struct.unpack("<Q", data[:8])[0]].decode()
    twice = []

    def pairs(items):
        if len({k for k, _ in items}) < len(items):
            twice.append(items)
        return dict(items)

    json.loads(text, object_pairs_hook=pairs)
    return "a key comes twice" if twice else "no '{' first" if not text.startswith("{") else None


def verdict(data):
    """"ok", or why not."""
    try:
        deserialize(data)
    except SafetensorError as e:
        return str(e).split(":")[-1].strip() or str(e)
    return forbidden(data) or "ok"


def cases():
    one = tensor("F32", [1], [0, 4])
    yield "empty", file({})
    yield "nothing", b""
    yield "seven bytes", bytes(7)
    yield "no header", bytes(8)
    yield "the header is a list", file([])
    yield "the header is a number", file("7")
    yield "the header is cut", file('{"a":{"dtype":"F32","shape":[1],"data_o')
    yield "not UTF-8", file("{}")[:8] + b"\xff}"
    yield "a raw control character", file('{"a\n":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))
    yield "more after the object", file("{}{}")
    yield "a trailing comma", file('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},}', bytes(4))
    yield "padded with spaces", file(json.dumps({"a": one}) + " " * 7, bytes(4))
    yield "a space first", file(" " + json.dumps({"a": one}), bytes(4))
    for name, length in (("one more than there is", 3), ("100 million", 10**8), ("beyond 100 million", 10**8 + 1),
                         ("2^63", 2**63), ("the most", MOST), ("wraps to 0", MOST - 7)):
        yield f"header length: {name}", file({}, length=length)
    yield "one", file({"a": one}, bytes(4))
    yield "two, out of order", file({"b": tensor("F32", [1], [4, 8]), "a": one}, bytes(8))
    yield "the same name twice", file('{"a":%s,"a":%s}' % (json.dumps(one), json.dumps(tensor("F32", [1], [4, 8]))), bytes(8))
    yield "dtype twice", file('{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))
    yield "metadata twice", file('{"__metadata__":{},"__metadata__":{}}')
    for key in one:
        yield f"no {key}", file({"a": {k: v for k, v in one.items() if k != key}}, bytes(4))
        for value in (None, 7, "x", [], [None], {}, ["0", "4"], [0], [0, 4, 4], [-1, 3], [0.5, 4], True):
            yield f"{key} is {json.dumps(value)}", file({"a": {**one, key: value}}, bytes(4))
    yield "a tensor is a number", file({"a": 7})
    yield "a tensor is null", file({"a": None})
    yield "more keys", file({"a": {**one, "strides": [1], "x": None}}, bytes(4))
    for name, metadata in (("none", None), ("empty", {}), ("text", {"format": "pt"}), ("a number", {"format": 1}),
                           ("an object", {"format": {}}), ("null in it", {"format": None}), ("a list", []), ("text itself", "pt")):
        yield f"metadata: {name}", file({"__metadata__": metadata, "a": one}, bytes(4))
    yield "metadata as a tensor", file({"__metadata__": one}, bytes(4))
    yield "scalar", file({"a": tensor("F16", [], [0, 2])}, bytes(2))
    yield "no elements", file({"a": tensor("F32", [0, 5], [0, 0])})
    yield "no elements between others", file({"a": one, "b": tensor("F32", [0], [4, 4]), "c": tensor("U8", [1], [4, 5])}, bytes(5))
    yield "no elements beyond the end", file({"a": tensor("F32", [0], [4, 4])})
    yield "seven dimensions", file({"a": tensor("F32", [1] * 7, [0, 4])}, bytes(4))
    for dtype in "f32", "F31", "FLOAT", "":
        yield f"type {dtype}", file({"a": tensor(dtype, [1], [0, 4])}, bytes(4))
    for dtype in ("BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F4 F6_E2M3 F6_E3M2 I16 U16 F16 BF16 I32 U32 F32 F64 I64 U64 "
                  "C64").split():
        for size in (1, 4, 6, 8, 16, 32, 64):
            yield f"eight of type {dtype} in {size} bytes", file({"a": tensor(dtype, [8], [0, size])}, bytes(size))
    yield "three of half a byte", file({"a": tensor("F4", [3], [0, 1])}, bytes(1))
    for name, begin, end, size in (("one too few", 0, 3, 3), ("one too many", 0, 5, 5), ("backwards", 4, 0, 4),
                                   ("a hole first", 4, 8, 8), ("a byte after", 0, 4, 5), ("cut off", 0, 4, 3),
                                   ("far away", 2**40, 2**40 + 4, 4), ("wraps", MOST - 3, MOST, 4),
                                   ("2^64", 0, 2**64, 4), ("2^53 apart", 2**53, 2**53 + 4, 4)):
        yield f"offsets: {name}", file({"a": tensor("F32", [1], [begin, end])}, bytes(size))
    for name, b, size in (("overlap", [3, 7], 7), ("the same bytes", [0, 4], 4), ("inside", [0, 4], 8), ("a hole", [5, 9], 9),
                          ("the last one is cut", [4, 8], 7), ("a byte after", [4, 8], 9)):
        yield f"two: {name}", file({"a": tensor("U8", [8], [0, 8]) if name == "inside" else one,
                                    "b": tensor("F32", [1], b)}, bytes(size))
    # Not asked: dimensions beyond 2^53 of tensors without elements, which the reference takes and we do not.
    for shape in ([2**32, 2**32], [2**62, 4], [2**61, 8], [2**63, 2], [MOST], [2**31, 2**31, 4], [2**64],
                  [2**62], [2**32, 2**31, 0], [2**33, 2**33, 0], [1e0], [1e300]):
        for size in (0, 4):
            yield f"shape {shape} in {size} bytes", file({"a": tensor("F32", shape, [0, size])}, bytes(size))


def main():
    found = [{"name": name, "file": data.hex(), "verdict": verdict(data)} for name, data in cases()]
    base = file({"__metadata__": {"a": "b"}, "c": tensor("F32", [2, 1], [0, 8]), "a": tensor("BF16", [1, 3], [8, 14]),
                 "i": tensor("I64", [], [14, 22])}, bytes(range(22)))
    flips = bytearray(base)
    bits = ""
    for i in range(len(base)):
        for bit in range(8):
            flips[i] ^= 1 << bit
            bits += "1" if verdict(bytes(flips)) == "ok" else "0"
            flips[i] ^= 1 << bit
    assert all(verdict(base[:n]) != "ok" for n in range(len(base))) and verdict(base) == "ok"
    lines = ",\n".join(json.dumps(c) for c in found)
    text = '{"base": "%s",\n"flips": "%s",\n"cases": [\n%s]}\n' % (base.hex(), bits, lines)
    (common.OUT / "safetensors_cases.json").write_text(text)
    print(len(found), "cases,", sum(c["verdict"] == "ok" for c in found), "open;", bits.count("1"), "of", len(bits), "flips")


if __name__ == "__main__":
    main()
