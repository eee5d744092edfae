"""Landscapes drawn by a program: the data of the demo model.

A scene is a handful of attributes (time of day, colour of the sun or moon, mountain ranges, foreground, object,
count) and a seed for everything that the caption does not say (horizon, ridges, places, sizes). `render` draws it
at any size with analytic anti-aliasing; `caption` says every attribute in one of many phrasings. A fixed tenth of
the attribute combinations is held out of the training data (`held_out`), for the test prompts.

    python scenes.py OUT.png [ROWS COLUMNS]      a sheet of random scenes
"""
import hashlib
import random
import sys
from dataclasses import astuple, dataclass

import numpy as np

TIMES = ("dawn", "noon", "sunset", "night")
COLOURS = ("white", "yellow", "orange", "red", "blue")
SUN_COLOURS = ("white", "yellow", "orange", "red")
MOON_COLOURS = ("white", "yellow", "orange", "blue")
MOUNTAINS = (0, 1, 2, 3)
GROUNDS = ("lake", "field", "desert", "snow")
OBJECTS = ("none", "tree", "house", "sailboat")
COUNTS = (0, 1, 2, 3)

# Attribute -> its classes, in the order in which the checker and the scores name them.
ATTRIBUTES = {
    "time": TIMES, "colour": COLOURS, "mountains": MOUNTAINS,
    "ground": GROUNDS, "object": OBJECTS, "count": COUNTS,
}


@dataclass(frozen=True)
class Scene:
    time: str
    colour: str
    mountains: int
    ground: str
    object: str
    count: int

    def labels(self):
        """The index of each attribute's class, in the order of ATTRIBUTES."""
        return [classes.index(getattr(self, name)) for name, classes in ATTRIBUTES.items()]


def all_scenes():
    for time in TIMES:
        for colour in MOON_COLOURS if time == "night" else SUN_COLOURS:
            for mountains in MOUNTAINS:
                for ground in GROUNDS:
                    yield Scene(time, colour, mountains, ground, "none", 0)
                    for thing in ("tree", "house", "sailboat") if ground == "lake" else ("tree", "house"):
                        for count in (1, 2, 3):
                            yield Scene(time, colour, mountains, ground, thing, count)


def held_out(scene):
    """True for the fixed tenth of the combinations that no training picture shows."""
    return hashlib.md5(repr(astuple(scene)).encode()).digest()[0] % 10 == 3


def sample_scene(rng, allow=lambda scene: not held_out(scene)):
    """A random scene, each attribute about evenly spread, that `allow` accepts."""
    while True:
        time = rng.choice(TIMES)
        ground = rng.choices(GROUNDS, (0.34, 0.22, 0.22, 0.22))[0]
        count = rng.choices(COUNTS, (0.13, 0.29, 0.29, 0.29))[0]
        things = ("tree", "house", "sailboat") if ground == "lake" else ("tree", "house")
        scene = Scene(time, rng.choice(MOON_COLOURS if time == "night" else SUN_COLOURS), rng.choice(MOUNTAINS),
                      ground, rng.choice(things) if count else "none", count)
        if allow(scene):
            return scene


# --- drawing -------------------------------------------------------------------------------------------------

def rgb(*v):
    return np.array(v, np.float32)


# Sky from the zenith to the horizon, light on the ground, the tone of near mountains.
SKIES = {
    "dawn": (rgb(.47, .45, .74), rgb(.83, .66, .80), rgb(1.0, .87, .74)),
    "noon": (rgb(.14, .42, .85), rgb(.38, .66, .95), rgb(.80, .92, .99)),
    "sunset": (rgb(.33, .16, .42), rgb(.80, .30, .36), rgb(1.0, .64, .27)),
    "night": (rgb(.02, .03, .12), rgb(.07, .10, .28), rgb(.22, .31, .55)),
}
LIGHT = {"dawn": rgb(.90, .80, .86), "noon": rgb(1, 1, 1), "sunset": rgb(.94, .71, .66), "night": rgb(.38, .45, .64)}
# Things stand out at night as in bright moonlight: in the ground's own light a tree before a dark slope is lost.
THING_LIGHT = {**LIGHT, "night": rgb(.66, .72, .84)}
RIDGE = {"dawn": rgb(.30, .27, .46), "noon": rgb(.20, .32, .43), "sunset": rgb(.26, .10, .22),
         "night": rgb(.03, .05, .125)}
DISC = {"white": rgb(1, 1, .97), "yellow": rgb(1, .87, .18), "orange": rgb(1, .50, .05), "red": rgb(.87, .07, .09),
        "blue": rgb(.36, .62, 1)}
GROUND = {  # far, near
    "field": (rgb(.52, .72, .27), rgb(.17, .45, .13)),
    "desert": (rgb(.95, .80, .50), rgb(.80, .55, .27)),
    "snow": (rgb(.97, .98, 1.0), rgb(.80, .87, .95)),
    "lake": (rgb(.30, .42, .20), rgb(.30, .42, .20)),   # the far shore
}


def smooth(a, b, x):
    t = np.clip((x - a) / (b - a), 0, 1)
    return t * t * (3 - 2 * t)


def ridge_line(rs, x, step, sharp):
    """Value noise of four octaves at x (units of the short side), about zero mean, within about [-1, 1]."""
    y = np.zeros_like(x)
    scale, weight = step, 1.0
    for octave in range(4):
        n = int(np.ceil(x[-1] / scale)) + 3
        knots = rs.uniform(-1, 1, n).astype(np.float32)
        u = x / scale + rs.uniform(0, 1)
        i = u.astype(int)
        f = u - i
        if octave or not sharp:
            f = f * f * (3 - 2 * f)
        y += weight * (knots[i] * (1 - f) + knots[i + 1] * f)
        scale, weight = scale / 2.1, weight * 0.42
    return y * 0.75


class Canvas:
    """A picture in units of its short side, y downwards, with coverage-blended shapes."""

    def __init__(self, width, height):
        self.w, self.h = width, height
        self.u = float(min(width, height))
        self.x = (np.arange(width, dtype=np.float32) + .5) / self.u
        self.y = (np.arange(height, dtype=np.float32) + .5) / self.u
        self.width, self.height = width / self.u, height / self.u
        self.rgb = np.zeros((height, width, 3), np.float32)

    def window(self, x0, y0, x1, y1):
        pad = 1.5 / self.u
        c0, c1 = (int(np.clip(np.floor(v * self.u), 0, self.w)) for v in (x0 - pad, x1 + pad + 1 / self.u))
        r0, r1 = (int(np.clip(np.floor(v * self.u), 0, self.h)) for v in (y0 - pad, y1 + pad + 1 / self.u))
        return slice(r0, r1), slice(c0, c1)

    def blend(self, rows, cols, cover, colour):
        part = self.rgb[rows, cols]
        part += cover[..., None] * (colour - part)

    def polygon(self, points, colour):
        """A convex polygon, clockwise on the screen (y down)."""
        p = np.asarray(points, np.float32)
        rows, cols = self.window(p[:, 0].min(), p[:, 1].min(), p[:, 0].max(), p[:, 1].max())
        if rows.stop <= rows.start or cols.stop <= cols.start:
            return
        x, y = self.x[None, cols], self.y[rows, None]
        cover = np.ones((rows.stop - rows.start, cols.stop - cols.start), np.float32)
        for (ax, ay), (bx, by) in zip(p, np.roll(p, -1, 0)):
            length = np.hypot(bx - ax, by - ay) + 1e-9
            inside = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / length
            cover *= np.clip(inside * self.u + .5, 0, 1)
        self.blend(rows, cols, cover, colour)

    def disc(self, cx, cy, r, colour, soft=0.0):
        rows, cols = self.window(cx - r - soft, cy - r - soft, cx + r + soft, cy + r + soft)
        d = np.hypot(self.x[None, cols] - cx, self.y[rows, None] - cy)
        self.blend(rows, cols, np.clip((r - d) * self.u + .5, 0, 1), colour)


def stretch(c):
    """How far a composition spreads in wide pictures: half as much as the picture is wider."""
    return (1 + c.width) / 2


def sky(c, s, rs, horizon, peak):
    top, middle, low = SKIES[s.time]
    t = (c.y / horizon)[:, None]
    col = np.where(t < .55, top + (middle - top) * smooth(0, .55, t), middle + (low - middle) * smooth(.55, 1.02, t))
    c.rgb[:] = col[:, None, :]
    if s.time == "night":
        for _ in range(int(26 * c.width * c.height)):
            c.disc(rs.uniform(0, c.width), rs.uniform(0, horizon * .8), rs.uniform(.0032, .0058),
                   rgb(.80, .85, 1) * rs.uniform(.7, 1))
    r = rs.uniform(.062, .088)
    cx = c.width / 2 + rs.uniform(-.12, .12) * stretch(c)
    lowest = max(horizon - max(peak + .6 * r, .30), r + .06)
    cy = rs.uniform(max(r + .035, lowest - .22), lowest)
    disc = DISC[s.colour]
    d = np.hypot(c.x[None, :] - cx, c.y[:, None] - cy)
    glow = (.32 if s.time == "night" else .50) * np.exp(-np.maximum(d - r, 0) / (.9 * r))
    lit = disc * (.85 if s.time == "night" else 1.0) + (0.0 if s.time == "night" else .12)
    c.rgb += glow[..., None] * (np.clip(lit, 0, 1) - c.rgb) * .8
    c.disc(cx, cy, r, disc)
    if s.time == "night":                                   # a moon has seas
        for _ in range(3):
            a, q = rs.uniform(0, 2 * np.pi), rs.uniform(.15, .55) * r
            c.disc(cx + q * np.cos(a), cy + q * np.sin(a), rs.uniform(.13, .24) * r, disc * .86)


def mountain_layers(c, s, rs):
    """Height above the horizon of each range over x, far to near."""
    heights = {0: (), 1: (.185,), 2: (.26, .115), 3: (.325, .205, .095)}[s.mountains]
    layers = []
    for i, h in enumerate(heights):
        h *= rs.uniform(.94, 1.06)
        swing = .058 if len(heights) == 1 else .044 - .007 * i
        line = h + swing * ridge_line(rs, c.x, rs.uniform(.20, .30), sharp=True)
        floor = layers[-1] - .042 if layers else None
        layers.append(np.minimum(line, floor) if layers else line)   # each range shows above the nearer one
    return [np.maximum(l, .018).astype(np.float32) for l in layers]


def mountains(c, s, layers, horizon):
    low, near = SKIES[s.time][2], RIDGE[s.time]
    haze = low * (.82 if s.time != "night" else 1.0)
    for i, line in enumerate(layers):
        depth = (i + 1) / len(layers)                        # 1 is the nearest
        top = haze + (near - haze) * (.38 + .62 * depth if len(layers) > 1 else .8)
        d = c.y[:, None] - (horizon - line)[None, :]
        cover = np.clip(d * c.u * .75 + .5, 0, 1)
        cover[c.y > horizon + 2 / c.u] = 0
        down = np.clip(d / np.maximum(line, .05)[None, :], 0, 1)[..., None]
        c.rgb += cover[..., None] * (top + (haze - top) * .62 * down ** 1.3 - c.rgb)


def ground(c, s, rs, horizon):
    light = LIGHT[s.time]
    far, near = GROUND[s.ground]
    if s.ground == "lake":
        shore = horizon - .022 - .006 * ridge_line(rs, c.x, .35, sharp=False)
        cover = np.clip((c.y[:, None] - shore[None, :]) * c.u + .5, 0, 1)
        c.rgb += cover[..., None] * (far * light * .75 - c.rgb)
        return
    depth = np.clip((c.y - horizon) / (c.height - horizon), 0, 1)[:, None]
    edge = horizon + .006 * ridge_line(rs, c.x, .5, sharp=False)
    cover = np.clip((c.y[:, None] - edge[None, :]) * c.u + .5, 0, 1)
    c.rgb += cover[..., None] * ((far + (near - far) * depth ** .8)[:, None, :] * light - c.rgb)
    folds = 3
    for i in range(folds):                                   # rolling ground: crests, lit above and shaded below
        at = horizon + (c.height - horizon) * ((i + .55 + rs.uniform(-.15, .15)) / folds)
        swing = {"desert": .045, "field": .026, "snow": .030}[s.ground] * (.6 + .4 * i)
        line = at + swing * ridge_line(rs, c.x, rs.uniform(.45, .7), sharp=s.ground == "desert")
        d = c.y[:, None] - line[None, :]
        shade = np.exp(-np.maximum(d, 0) / (.05 + .03 * i)) * np.clip(d * c.u + .5, 0, 1)
        amount = {"desert": .30, "field": .26, "snow": .22}[s.ground]
        tone = {"desert": rgb(.62, .36, .16), "field": rgb(.10, .30, .08), "snow": rgb(.52, .64, .84)}[s.ground]
        c.rgb += (amount * 1.6 * shade)[..., None] * (tone * light - c.rgb)


def tree(c, s, rs, x, base, k):
    light = THING_LIGHT[s.time]
    h = rs.uniform(.21, .25) * k
    w = h * rs.uniform(.25, .28)
    c.polygon([(x - w * .16, base - h * .3), (x + w * .16, base - h * .3), (x + w * .16, base),
               (x - w * .16, base)], rgb(.42, .26, .14) * light)
    leaf = rgb(.10, .46, .20) * light
    for lo, hi, width in ((.20, .58, 1.0), (.42, .80, .80), (.64, 1.0, .58)):
        a, b = base - h * hi, base - h * lo
        c.polygon([(x, a), (x + w * width, b), (x - w * width, b)], leaf * .72)
        c.polygon([(x, a), (x + w * width * .12, b), (x - w * width, b)], leaf * 1.25)


def house(c, s, rs, x, base, k):
    light = THING_LIGHT[s.time]
    w, h = rs.uniform(.085, .10) * k, rs.uniform(.085, .10) * k
    wall = (rgb(.96, .90, .76), rgb(.93, .93, .92), rgb(.86, .72, .52))[rs.randint(3)]
    roof = rgb(.66, .18, .13)
    wall_light = np.clip(light * 1.1, 0, 1)
    c.polygon([(x - w, base - h), (x + w, base - h), (x + w, base), (x - w, base)], wall * wall_light)
    c.polygon([(x, base - h * 1.95), (x + w * 1.22, base - h * .96), (x - w * 1.22, base - h * .96)],
              roof * wall_light)
    c.polygon([(x - w * .72, base - h * .62), (x - w * .28, base - h * .62), (x - w * .28, base),
               (x - w * .72, base)], rgb(.34, .20, .12) * light)
    pane = rgb(1, .84, .36) if s.time in ("night", "sunset") else rgb(.40, .58, .76) * light
    c.polygon([(x + w * .10, base - h * .70), (x + w * .66, base - h * .70), (x + w * .66, base - h * .26),
               (x + w * .10, base - h * .26)], pane)


def sailboat(c, s, rs, x, base, k):
    light = np.clip(THING_LIGHT[s.time] * 1.1, 0, 1)
    h = rs.uniform(.21, .24) * k
    w = h * rs.uniform(.40, .45)
    side = 1 if rs.randint(2) else -1

    def shape(points, colour):
        pts = [(x + side * w * px, base - h * py) for px, py in points]
        c.polygon(pts if side > 0 else pts[::-1], colour)
    shape([(-.04, .98), (.02, .98), (.02, .15), (-.04, .15)], rgb(.35, .22, .12) * light)
    shape([(.05, .97), (.78, .24), (.05, .24)], rgb(.98, .97, .93) * light)
    shape([(-.08, .86), (-.08, .24), (-.66, .24)], rgb(.90, .86, .78) * light)
    shape([(-1.0, .18), (1.0, .18), (.68, 0), (-.70, 0)], rgb(.55, .16, .12) * light)


DRAW = {"tree": tree, "house": house, "sailboat": sailboat}


def places(c, s, rs, horizon):
    """(x, base, scale) of each object, far to near: one near the middle, two or three in a loose row about it.

    A sampler places things where noise happens to favour them, each far from the others on its own. Rows whose
    shape says the number are what so small a model can count.
    """
    if not s.count:
        return []
    gap = {1: 0, 2: rs.uniform(.38, .46), 3: rs.uniform(.275, .305)}[s.count]
    middle = c.width / 2 + rs.uniform(-1, 1) * {1: .08, 2: .07, 3: .05}[s.count] * stretch(c)
    out = []
    for i in range(s.count):
        x = middle + (i - (s.count - 1) / 2) * gap * stretch(c) + rs.uniform(-.01, .01)
        if s.ground == "lake" and s.object != "sailboat":
            out.append((x, horizon - .012, rs.uniform(.88, 1.0)))
        else:
            d = rs.uniform(.06, .16)
            out.append((x, horizon + d * min(1.3, (c.height - horizon) / .42), .92 + 1.0 * (d - .05)))
    return sorted(out, key=lambda p: p[1])


def mirror(c, rs, horizon):
    """Everything above the horizon, upside down, darker, bluish, with ripples that grow towards the viewer."""
    r0 = int(np.ceil(horizon * c.u))
    y = c.y[r0:, None]
    d = y - horizon
    phase = rs.uniform(0, 6.28, 3)
    near = np.sqrt(np.clip(d, 0, None)) + .02
    wave = (np.sin(150 * near + 9 * c.x[None, :] + phase[0]) + .6 * np.sin(95 * near - 14 * c.x[None, :] + phase[1]))
    ry = np.clip((horizon - d * .97 + .0035 * wave * near / .5) * c.u - .5, 0, r0 - 1)
    rx = np.clip((c.x[None, :] + .0035 * wave * near / .5) * c.u - .5, 0, c.w - 1)
    y0, x0 = ry.astype(int), rx.astype(int)
    fy, fx = (ry - y0)[..., None].astype(np.float32), (rx - x0)[..., None].astype(np.float32)
    y1, x1 = np.minimum(y0 + 1, r0 - 1), np.minimum(x0 + 1, c.w - 1)
    a = c.rgb
    seen = (a[y0, x0] * (1 - fx) + a[y0, x1] * fx) * (1 - fy) + (a[y1, x0] * (1 - fx) + a[y1, x1] * fx) * fy
    seen *= rgb(.66, .72, .78)
    seen += (.020 * wave * near / .5)[..., None].astype(np.float32)
    bank = np.exp(-np.clip(d, 0, None) / .006)[..., None] * .35
    c.rgb[r0:] = seen * (1 - bank)


def render(scene, seed, width=256, height=256):
    """The scene as uint8 [height][width][3]. The same seed shows the same places at every size of one aspect."""
    rs = np.random.RandomState(seed % (1 << 32))
    c = Canvas(width, height)
    horizon = rs.uniform(.545, .605) * c.height
    layers = mountain_layers(c, scene, rs)
    peak = float(max((l.max() for l in layers), default=.0))
    sky(c, scene, rs, horizon, peak)
    mountains(c, scene, layers, horizon)
    ground(c, scene, rs, horizon)
    spots = places(c, scene, rs, horizon)
    if scene.ground == "lake":
        if scene.object != "sailboat":
            for spot in spots:
                DRAW[scene.object](c, scene, rs, *spot)
        mirror(c, rs, horizon)
        if scene.object == "sailboat":
            for x, base, k in spots:
                boat(c, scene, rs, x, base, k)
    else:
        for x, base, k in spots:
            shadow(c, scene, x, base, k)
            DRAW[scene.object](c, scene, rs, x, base, k)
    return (np.clip(c.rgb, 0, 1) * 255 + .5).astype(np.uint8)


def shadow(c, s, x, base, k):
    rows, cols = c.window(x - .13 * k, base - .02 * k, x + .13 * k, base + .02 * k)
    d = np.hypot((c.x[None, cols] - x) / (.115 * k), (c.y[rows, None] - base) / (.016 * k))
    c.blend(rows, cols, .34 * (1 - smooth(.5, 1, d)), GROUND[s.ground][1] * LIGHT[s.time] * .3)


def boat(c, s, rs, x, base, k):
    """A sailboat and its own reflection, drawn in a copy and flipped about the waterline."""
    rows, cols = c.window(x - .12 * k, base - .24 * k, x + .12 * k, base)
    before = c.rgb[rows, cols].copy()
    sailboat(c, s, rs, x, base, k)
    drawn = c.rgb[rows, cols]
    cover = np.abs(drawn - before).max(-1) > .02
    line = int(base * c.u)
    n = min(line - rows.start, c.h - line)
    if n > 2:
        src = slice(line - rows.start - n, line - rows.start)
        ghost, mask = drawn[src][::-1].copy(), cover[src][::-1]
        fade = (.62 * np.exp(-np.arange(n) / (c.u * .10)))[:, None].astype(np.float32)
        part = c.rgb[line:line + n, cols]
        part += (mask * fade)[..., None] * (ghost * rgb(.7, .76, .82) - part)


# --- captions ------------------------------------------------------------------------------------------------

TIME_WORDS = {
    "dawn": ("at dawn", "at daybreak", "in the early morning", "at sunrise"),
    "noon": ("at noon", "at midday", "in the middle of the day", "by day"),
    "sunset": ("at sunset", "at dusk", "in the evening", "at sundown"),
    "night": ("at night", "by night", "in the night", "after dark"),
}
GROUND_WORDS = {
    "lake": ("a lake", "a calm lake", "a still lake", "a lake that mirrors the sky"),
    "field": ("a field", "a green field", "a meadow", "a grassy field"),
    "desert": ("a desert", "a sandy desert", "desert dunes", "a desert of sand"),
    "snow": ("snow", "a snowy plain", "a field of snow", "a snow-covered plain"),
}
RANGE_WORDS = {
    0: ("no mountains", "a flat horizon", "no mountains at all"),
    1: ("one mountain range", "a single mountain range", "one range of mountains", "a mountain range"),
    2: ("two mountain ranges", "two ranges of mountains", "two layers of mountains"),
    3: ("three mountain ranges", "three ranges of mountains", "three layers of mountains"),
}
NUMBER_WORDS = {1: ("a", "one", "a single"), 2: ("two", "2"), 3: ("three", "3")}
PLURAL = {"tree": "trees", "house": "houses", "sailboat": "sailboats"}


def clauses(s, rng):
    """The attributes in words: place (with the time), light, ranges, things."""
    body = "moon" if s.time == "night" else "sun"
    article = "an" if s.colour == "orange" else "a"
    light = rng.choice((f"{article} {s.colour} {body}", f"under {article} {s.colour} {body}",
                        f"with {article} {s.colour} {body} in the sky", f"the {body} is {s.colour}"))
    ranges = rng.choice(RANGE_WORDS[s.mountains])
    ranges = rng.choice(("", "with ", "")) + ranges + (rng.choice(("", " behind", " in the distance"))
                                                       if s.mountains else "")
    if s.count:
        thing = rng.choice(NUMBER_WORDS[s.count]) + " " + (s.object if s.count == 1 else PLURAL[s.object])
        where = {"sailboat": (" on the water", " sailing", ""), "tree": ("", "", " growing there"),
                 "house": ("", "", " standing there")}[s.object]
        thing = rng.choice(("", "", "with ")) + thing + rng.choice(where)
    else:
        thing = rng.choice(("nothing else", "no objects", "empty", "with nothing on it"))
    return rng.choice(GROUND_WORDS[s.ground]), rng.choice(TIME_WORDS[s.time]), light, ranges, thing


def caption(s, rng, drop=0.0):
    """All attributes in one of many phrasings. With probability `drop` some of them are left out."""
    place, when, light, ranges, thing = clauses(s, rng)
    style = rng.randrange(4)
    if style == 0:                                           # one place-and-time phrase, the rest shuffled
        parts = [light, ranges, thing]
        rng.shuffle(parts)
        parts.insert(0, f"{place} {when}")
    elif style == 1:                                         # everything shuffled
        parts = [place, when, light, ranges, thing]
        rng.shuffle(parts)
    elif style == 2:
        head = rng.choice(("a landscape with", "a picture of", "a painting of", "a view of"))
        parts = [light, ranges, thing]
        rng.shuffle(parts)
        parts.insert(0, f"{head} {place} {when}")
    else:                                                    # time first
        parts = [ranges, light, thing]
        rng.shuffle(parts)
        parts.insert(rng.randrange(3), place)
        parts.insert(0, when)
    if rng.random() < drop:
        for _ in range(rng.randint(1, len(parts) - 2)):
            parts.pop(rng.randrange(len(parts)))
    text = rng.choice((", ", ", ", ", ", "; ", ". ", " and ") if len(parts) < 4 else (", ", ", ", ", ", ". ")).join(parts)
    if rng.random() < .5:
        text = text[0].upper() + text[1:]
    return text + (rng.choice((".", "")))


def test_prompts(n=200):
    """The n (scene, caption) pairs of the test: held-out combinations, fixed for good."""
    scenes = [s for s in all_scenes() if held_out(s)]
    rng = random.Random(20261123)
    picked = []
    while len(picked) < n:
        rng.shuffle(scenes)
        picked += scenes[:n - len(picked)]
    return [(s, caption(s, rng)) for s in picked]


def sheet(pictures, columns, gap=4):
    h, w = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    out = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, p in enumerate(pictures):
        r, c = divmod(i, columns)
        out[r * (h + gap):r * (h + gap) + h, c * (w + gap):c * (w + gap) + w] = p
    return out


def main():
    from PIL import Image
    rows, columns = (int(v) for v in sys.argv[2:4]) if len(sys.argv) > 3 else (4, 6)
    rng = random.Random(1)
    pictures = []
    for i in range(rows * columns):
        s = sample_scene(rng)
        print(i, caption(s, rng))
        pictures.append(render(s, i))
    Image.fromarray(sheet(pictures, columns)).save(sys.argv[1])


if __name__ == "__main__":
    main()
