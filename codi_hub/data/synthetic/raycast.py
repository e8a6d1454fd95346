"""A small vectorised ray caster: spheres, boxes, cones and cylinders on a ground plane under a sky or before a wall.

The camera is at (0, height, 0), x to the right, y up, z ahead. Ray directions have a forward component of 1, so that a
hit's parameter t is its planar depth. All fields are flat float32 arrays, one element per ray.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codi_hub.data.synthetic.textures import noise, pattern

SUPERSAMPLING = 2
FAR = np.float32(1e9)
Array = npt.NDArray[Any]
Colour = tuple[float, float, float]  # linear light
Vector = tuple[Any, ...]  # x, y, z: arrays of one shape, or scalars


@dataclass(frozen=True)
class Surface:
    """Two colours mixed by a pattern with cells of size `cell`; `gloss` in [0, 1]."""

    texture: str
    first: Colour
    second: Colour
    cell: float
    gloss: float = 0.0


@dataclass(frozen=True)
class Solid:
    """An object on the ground; `half`: half extents of a box, (radius, half height, radius) of a round one."""

    shape: str
    at: tuple[float, float]  # x, z of its axis
    half: tuple[float, float, float]
    yaw: float
    surface: Surface
    words: tuple[str, str, str]  # size, colour and texture words ("" for none)

    @property
    def centre(self) -> tuple[float, float, float]:
        """Return (x, y, z)."""
        return self.at[0], self.half[1], self.at[1]

    @property
    def radius(self) -> float:
        """Return the radius of a bounding sphere."""
        return self.half[0] if self.shape == "sphere" else math.hypot(*self.half)


@dataclass(frozen=True)
class Light:
    """Sun or moon, sky and haze; colours in linear light."""

    towards: tuple[float, float, float]
    sun: Colour
    zenith: Colour
    horizon: Colour
    ambient: float
    exposure: float
    haze: float  # extinction per unit of distance
    clouds: float = 0.0
    stars: float = 0.0
    spread: float = 0.02  # angular radius of the light, rad: width of the penumbrae
    pool: float = 0.0  # indoors, the radius of the area that the lamp lights; 0 for none


@dataclass(frozen=True)
class World:
    """A scene: camera, ground, light, solids, wall."""

    height: float
    pitch: float  # radians downwards
    tan: float  # tangent of half the field of view
    ground: Surface
    light: Light
    solids: tuple[Solid, ...]
    wall: Surface | None = None
    wall_at: float = 0.0
    hills: float = 0.0
    drift: float = 0.0  # offset of clouds, hills and ground in the noise field


def _local(solid: Solid, x: Array, y: Array, z: Array) -> Vector:
    """Rotate vectors into the axes of a solid."""
    c, s = math.cos(solid.yaw), math.sin(solid.yaw)
    return c * x - s * z, y, s * x + c * z


def _hit_sphere(r: float, o: Vector, d: Vector) -> Array:
    """Return the ray parameter of the first hit from outside, else FAR."""
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    root = b * b - a * (o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - r * r)
    t = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((root > 0) & (t > 1e-3), t, FAR)


def _hit_box(half: tuple[float, float, float], o: Vector, d: Vector) -> Array:
    """Return the ray parameter of the first hit from outside, else FAR."""
    enter: Any = -FAR
    leave: Any = FAR
    for k in range(3):
        inverse = 1.0 / (d[k] + 1e-12)
        middle, reach = -o[k] * inverse, half[k] * np.abs(inverse)
        enter = np.maximum(enter, middle - reach)
        leave = np.minimum(leave, middle + reach)
    return np.where((enter < leave) & (enter > 1e-3), enter, FAR)


def _hit_round(r: float, h: float, slope: float, o: Vector, d: Vector) -> Array:
    """Hit a vertical cylinder (slope 0) or a cone (slope r / 2h, apex up) of half height h and base radius r."""
    at = r - slope * (o[1] + h)  # the radius allowed at the origin's height
    a = d[0] * d[0] + d[2] * d[2] - (slope * d[1]) ** 2
    b = o[0] * d[0] + o[2] * d[2] + at * slope * d[1]
    root = b * b - a * (o[0] * o[0] + o[2] * o[2] - at * at)
    square = np.sqrt(np.maximum(root, 0))
    best = np.full(np.shape(root), FAR, np.float32)
    safe = np.where(np.abs(a) < 1e-9, 1e-9, a)
    for sign in (-1.0, 1.0):
        t = (-b + sign * square) / safe
        on = (root > 0) & (t > 1e-3) & (np.abs(o[1] + t * d[1]) <= h)
        best = np.where(on & (t < best), t, best)
    for level in (-h, h) if slope == 0 else (-h,):
        t = (level - o[1]) / (d[1] + 1e-12)
        inside = (o[0] + t * d[0]) ** 2 + (o[2] + t * d[2]) ** 2 < r * r
        best = np.where(inside & (t > 1e-3) & (t < best), t, best)
    return best


def _hit(solid: Solid, o: Vector, d: Vector) -> Array:
    """Return t of the first hit from outside along rays o + t d, o relative to the solid's centre, else FAR."""
    if solid.shape == "sphere":
        return _hit_sphere(solid.half[0], o, d)
    if solid.shape == "box":
        return _hit_box(solid.half, _local(solid, *o), _local(solid, *d))
    slope = solid.half[0] / (2 * solid.half[1]) if solid.shape == "cone" else 0.0
    return _hit_round(solid.half[0], solid.half[1], slope, o, d)


def _normal(solid: Solid, p: Vector) -> Vector:
    """Return the outward unit normals at points on a solid, relative to its centre, in the axes of the world."""
    x, y, z = p
    r, h = solid.half[0], solid.half[1]
    if solid.shape == "sphere":
        return x / r, y / r, z / r
    if solid.shape == "box":
        lx, ly, lz = _local(solid, x, y, z)
        q = np.stack([lx / solid.half[0], ly / solid.half[1], lz / solid.half[2]])
        face = np.abs(q).argmax(0)
        nx, ny, nz = (np.where(face == k, np.sign(q[k]), 0).astype(np.float32) for k in range(3))
        c, s = math.cos(solid.yaw), math.sin(solid.yaw)
        return c * nx + s * nz, ny, -s * nx + c * nz
    slope = r / (2 * h) if solid.shape == "cone" else 0.0
    length = math.hypot(1.0, slope)
    around = np.maximum(np.hypot(x, z), 1e-6) * length
    lid = np.abs(y) > h - 1e-3
    if slope:
        lid &= y < 0
    return np.where(lid, 0, x / around), np.where(lid, np.sign(y), slope / length), np.where(lid, 0, z / around)


def _window(world: World, solid: Solid, side: int) -> tuple[slice, slice]:
    """Return the rows and columns of the image that contain the bounding sphere of a solid, with a margin."""
    x, y, z = solid.centre
    c, s = math.cos(world.pitch), math.sin(world.pitch)
    y -= world.height
    ahead, up = c * z - s * y, s * z + c * y
    near = ahead - solid.radius
    if near < 0.2:
        return slice(0, side), slice(0, side)
    reach = solid.radius / near + max(abs(x), abs(up)) * (1 / near - 1 / ahead)
    scale = side / (2 * world.tan)
    column, row = side / 2 + x / ahead * scale, side / 2 - up / ahead * scale
    extent = reach * scale + 2
    low = [max(0, min(side, math.floor(v - extent))) for v in (row, column)]
    high = [max(0, min(side, math.ceil(v + extent))) for v in (row, column)]
    return slice(low[0], high[0]), slice(low[1], high[1])


def _sky(world: World, d: Vector) -> Array:
    """Return the colour of the sky in directions d, float32 (N, 3)."""
    light = world.light
    length = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    x, y, z = d[0] / length, d[1] / length, d[2] / length
    rise = np.clip(y * 1.6, 0, 1) ** 0.6
    colour = _mix(light.horizon, light.zenith, rise)
    glow = np.clip(x * light.towards[0] + y * light.towards[1] + z * light.towards[2], 0, 1)
    halo = 0.12 * glow**8 + 0.35 * glow**64 + 4.0 * (glow > 0.9992)
    colour += halo[:, None] * np.array(light.sun, np.float32)
    if light.clouds:
        lift = np.maximum(y, 0) + 0.12
        cover = noise(0.16 * x / lift + world.drift, 0.16 * z / lift)
        cover = np.clip(0.7 * (cover + light.clouds * 2 - 1), 0, 0.9) * np.clip(y * 6, 0, 1)
        white = 0.9 * np.array(light.horizon, np.float32) + 0.22 * np.array(light.sun, np.float32)
        colour += cover[:, None] * (white - colour)
    if light.stars:
        speck = noise(x * 41.0 + world.drift, y * 41.0) > 2.6
        colour += (speck * light.stars)[:, None].astype(np.float32)
    if world.hills:
        ridge = world.hills * (0.6 + 0.35 * noise(0.35 * x / np.maximum(z, 0.2) + world.drift, np.full_like(x, 0.3)))
        far = np.clip((ridge - y) * 250.0, 0, 1)
        shade = (
            0.55 * np.array(light.horizon, np.float32) + 0.1 * np.array(world.ground.first, np.float32) * light.ambient
        )
        colour += far[:, None] * (shade - colour)
    return colour


def _mix(first: Colour, second: Colour, weight: Array) -> Array:
    """Interpolate two colours by weights (N,): (N, 3)."""
    a, b = np.array(first, np.float32), np.array(second, np.float32)
    return a + weight[:, None] * (b - a)


def _paint(surface: Surface, p: Vector, blur: Array) -> Array:
    """Return the colour of a surface at points p, (N, 3)."""
    scale = 1.0 / surface.cell
    weight = pattern(surface.texture, p[0] * scale, p[1] * scale, p[2] * scale, blur * scale)
    return _mix(surface.first, surface.second, weight)


def _shadows(world: World, p: Vector, n: Vector, which: Array, side: int) -> tuple[Array, Array]:
    """Return the shares of direct light and of sky light (contact shadows) at points p, both (N,) in [0, 1]."""
    sun, sky = np.ones_like(p[0]), np.ones_like(p[0])
    direction = world.light.towards
    across = (-direction[2], 0.0, direction[0])  # area light: the rays of a 2x2 block sample different parts of it
    for k, solid in enumerate(world.solids):
        c = solid.centre
        o = (p[0] - c[0], p[1] - c[1], p[2] - c[2])
        square = o[0] * o[0] + o[1] * o[1] + o[2] * o[2]
        # share of the hemisphere occluded by a sphere: cos * r^2 / d^2 (Quilez)
        size = 0.85 * min(solid.half)
        lying = np.where(which == k, 0, -(n[0] * o[0] + n[1] * o[1] + n[2] * o[2]))
        sky *= 1 - np.clip(lying * size * size / (np.maximum(square, size * size) ** 1.5), 0, 0.75)
        along = o[0] * direction[0] + o[1] * direction[1] + o[2] * direction[2]
        reach = solid.radius * 1.1 + 0.15
        near = np.flatnonzero((square - along * along < reach * reach) & (along < solid.radius) & (sun > 0))
        if solid.shape == "sphere":
            near = near[which[near] != k]
        if not near.size:
            continue
        jitter = (((near % side) % 2) * 2 + (near // side) % 2 - 1.5) * np.float32(world.light.spread / 1.5)
        start = tuple(o[i][near] + 4e-3 * n[i][near] for i in range(3))
        ray = tuple((direction[i] + across[i] * jitter).astype(np.float32) for i in range(3))
        sun[near] *= _hit(solid, start, ray) >= FAR
    return sun, sky


def _shade(world: World, p: Vector, n: Vector, d: Vector, base: Array, gloss: Array, lit: tuple[Array, Array]) -> Array:
    """Return the reflected light at points p, (N, 3): ambient, diffuse and specular."""
    light = world.light
    sun, sky = lit
    cosine = np.clip(n[0] * light.towards[0] + n[1] * light.towards[1] + n[2] * light.towards[2], 0, 1) * sun
    up = 0.5 + 0.5 * n[1]
    zenith, horizon = np.array(light.zenith, np.float32), np.array(light.horizon, np.float32)
    above = 0.35 * zenith + 0.65 * horizon
    bounce = np.array(world.ground.first, np.float32) * (above * 0.5 + 0.18 * np.array(light.sun, np.float32))
    ambient = light.ambient * (up[:, None] * above + (1 - up)[:, None] * bounce) * sky[:, None]
    colour = base * (ambient + cosine[:, None] * np.array(light.sun, np.float32))
    if light.pool:
        colour *= (1.15 / (1 + (p[0] ** 2 + (p[2] - 0.6 * world.wall_at) ** 2) / light.pool**2))[:, None]
    shiny = np.flatnonzero(gloss > 0)
    if shiny.size:
        dx, dy, dz = (d[i][shiny] for i in range(3))
        nx, ny, nz = (n[i][shiny] for i in range(3))
        length = np.sqrt(dx * dx + dy * dy + dz * dz)
        hx, hy, hz = light.towards[0] - dx / length, light.towards[1] - dy / length, light.towards[2] - dz / length
        half = np.clip((nx * hx + ny * hy + nz * hz) / np.sqrt(hx * hx + hy * hy + hz * hz), 0, 1)
        peak = (0.9 * gloss[shiny] * half**48 * sun[shiny])[:, None] * np.array(light.sun, np.float32)
        rim = 1 - np.clip(-(nx * dx + ny * dy + nz * dz) / length, 0, 1)
        colour[shiny] += peak + (0.35 * gloss[shiny] * rim**4 * sky[shiny])[:, None] * above
    return colour


def _cast(world: World, d: Vector, side: int) -> tuple[Array, Array]:
    """Return the depth (N,) and the index (N,) of the first hit: a solid's, -1 ground, -2 wall, -3 sky."""
    t = np.where(d[1] < -1e-4, -world.height / np.minimum(d[1], -1e-4), FAR).astype(np.float32)
    which = np.where(t < FAR, np.int32(-1), np.int32(-3))
    if world.wall is not None:
        wall = world.wall_at / np.maximum(d[2], 1e-3)
        which = np.where(wall < t, np.int32(-2), which)
        t = np.minimum(t, wall)
    depth, ids = t.reshape(side, side), which.reshape(side, side)
    grid = tuple(v.reshape(side, side) for v in d)
    for k, solid in enumerate(world.solids):
        window = _window(world, solid, side)
        c = solid.centre
        origin = tuple(np.float32(v) for v in (-c[0], world.height - c[1], -c[2]))
        hit = _hit(solid, origin, tuple(v[window] for v in grid))
        closer = hit < depth[window]
        depth[window][closer] = hit[closer]
        ids[window][closer] = k
    return depth.ravel(), ids.ravel()


def _surfaces(world: World, p: Vector, which: Array, t: Array, pixel: float) -> tuple[Array, Vector, Array]:
    """Return base colour (N, 3), normal and gloss (N,) at the hits; zero for the sky."""
    base, gloss = np.zeros((t.size, 3), np.float32), np.zeros_like(t)
    n = (np.zeros_like(t), np.zeros_like(t), np.zeros_like(t))
    floor = np.flatnonzero(which == -1)
    q: Vector = (p[0][floor] + world.drift, np.zeros(floor.size, np.float32), p[2][floor] + world.drift)
    blur = t[floor] * pixel * np.maximum(1.0, 0.6 * t[floor] / world.height)
    base[floor] = _paint(world.ground, q, blur)
    n[1][floor], gloss[floor] = 1.0, world.ground.gloss
    if world.wall is not None:
        wall = np.flatnonzero(which == -2)
        q = (p[0][wall] + world.drift, p[1][wall], np.zeros(wall.size, np.float32))
        base[wall] = _paint(world.wall, q, t[wall] * pixel)
        n[2][wall] = -1.0
    for k, solid in enumerate(world.solids):
        mine = np.flatnonzero(which == k)
        q = tuple(p[i][mine] - solid.centre[i] for i in range(3))
        base[mine] = _paint(solid.surface, _local(solid, *q), t[mine] * pixel)
        for i, value in enumerate(_normal(solid, q)):
            n[i][mine] = value
        gloss[mine] = solid.surface.gloss
    return base, n, gloss


def _rays(world: World, side: int) -> Vector:
    """Return the ray directions through the centres of side x side pixels."""
    steps = (((np.arange(side, dtype=np.float32) + 0.5) / side) * 2 - 1) * np.float32(world.tan)
    c, s = math.cos(world.pitch), math.sin(world.pitch)
    rise = np.repeat(-steps, side)
    return np.tile(steps, side), c * rise - s, s * rise + c


def solid_map(world: World, size: int) -> Array:
    """Return the index in `world.solids` of the solid at each pixel, int32 (size, size); below 0 for none."""
    return _cast(world, _rays(world, size), size)[1].reshape(size, size)


def render(world: World, size: int) -> tuple[Array, Array, list[float]]:
    """Render a world.

    Returns:
        image uint8 (size, size, 3) sRGB; depth float32 (size, size), relative inverse depth in [0, 1] with the nearest
        pixel 1 and the sky 0; and, per solid, the share of the image in which it is visible.
    """
    side = size * SUPERSAMPLING
    d = _rays(world, side)
    t, which = _cast(world, d, side)
    hit = which > -3
    reach = np.where(hit, t, 1)
    p = (d[0] * reach, d[1] * reach + np.float32(world.height), d[2] * reach)
    base, n, gloss = _surfaces(world, p, which, t, 2 * world.tan / side)
    lit = _shadows(world, p, n, which, side)
    colour = _shade(world, p, n, d, base, gloss, lit)
    if world.wall is None:
        sky = np.flatnonzero(t > 60)  # fade the horizon into the sky
        colour[sky] += np.clip((t[sky] - 60) / 400, 0, 1)[:, None] * (
            _sky(world, tuple(v[sky] for v in d)) - colour[sky]
        )
    if world.light.haze:
        veil = 1 - np.exp(-world.light.haze * np.minimum(t, 50))
        colour += veil[:, None] * (np.array(world.light.horizon, np.float32) - colour)
    colour = colour * np.float32(world.light.exposure)
    colour = (
        colour * (1 + colour / 6.0) / (1 + colour * 0.75)
    )  # tone mapping: a soft shoulder instead of clipped highlights
    colour = colour.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean((1, 3))
    image = (np.clip(colour, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)
    inverse = np.where(hit, 1 / t, 0).astype(np.float32).reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean((1, 3))
    visible_share = np.bincount(which[which >= 0], minlength=len(world.solids)) / which.size
    return image, inverse / max(float(inverse.max()), 1e-9), visible_share.tolist()
