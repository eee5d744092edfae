"""A second reader of PNG: 8 bit RGB, not interlaced, any filter, and its text. And a writer of RGB and RGBA."""
import base64
import struct
import zlib


class Png:
    def __init__(self, data):
        assert data[:8] == b"\x89PNG\r\n\x1a\n", data[:16]
        self.text = {}
        packed = b""
        at, last = 8, None
        while last != b"IEND":
            size, last = struct.unpack(">I4s", data[at:at + 8])
            body = data[at + 8:at + 8 + size]
            assert struct.unpack(">I", data[at + 8 + size:at + 12 + size])[0] == zlib.crc32(last + body)
            at += 12 + size
            if last == b"IHDR":
                self.width, self.height, *kind = struct.unpack(">IIBBBBB", body)
                assert kind == [8, 2, 0, 0, 0], kind
            elif last == b"IDAT":
                packed += body
            elif last == b"tEXt":
                key, _, value = body.partition(b"\0")
                self.text[key.decode("latin-1")] = value.decode("latin-1")
            elif last == b"iTXt":
                key, _, rest = body.partition(b"\0")
                value = rest[2:].split(b"\0", 2)[2]
                self.text[key.decode("latin-1")] = (zlib.decompress(value) if rest[0] else value).decode("utf-8")
        assert at == len(data), "bytes after IEND"
        self.pixels = self._unfilter(zlib.decompress(packed))

    @staticmethod
    def of_base64(text):
        return Png(base64.b64decode(text, validate=True))

    def _unfilter(self, raw):
        stride = self.width * 3
        assert len(raw) == self.height * (stride + 1)
        out = bytearray()
        above = bytes(stride)
        for y in range(self.height):
            kind = raw[y * (stride + 1)]
            line = bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
            for i in range(stride if kind else 0):
                left = line[i - 3] if i >= 3 else 0
                corner = above[i - 3] if i >= 3 else 0
                if kind == 1:
                    guess = left
                elif kind == 2:
                    guess = above[i]
                elif kind == 3:
                    guess = (left + above[i]) // 2
                else:
                    p = left + above[i] - corner
                    guess = min((abs(p - left), 0, left), (abs(p - above[i]), 1, above[i]),
                                (abs(p - corner), 2, corner))[2]
                line[i] = (line[i] + guess) & 255
            out += line
            above = line
        return bytes(out)


def encode(width, height, pixels, beside=()):
    """Pixels are tuples of three or four; beside: chunks before them, (kind, bytes)."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    channels = len(pixels[0])
    flat = bytes(v for pixel in pixels for v in pixel)
    rows = b"".join(b"\0" + flat[y * width * channels:(y + 1) * width * channels] for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 6, 0, 0, 0)
    between = b"".join(chunk(kind, body) for kind, body in beside)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + between + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def largest_difference(a, b):
    assert (a.width, a.height) == (b.width, b.height)
    return max(abs(x - y) for x, y in zip(a.pixels, b.pixels))
