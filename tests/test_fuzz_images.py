"""Thousands of damaged and malicious image files through `fmnb.profiling`: each ends as pixels or as a reason, in bounded time and memory. The work is done in a child process, so that a
crash of a decoder or a hang is a failed test with the file's name and not the end of the test run. `python tests/test_fuzz_images.py OUT.json` is that child."""
import io, json, os, resource, struct, subprocess, sys, time, zlib
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from fmnb.profiling import FORMATS, SIGNALS, Item, Settings, bomb, decode, encode, measure

CPU_SECONDS, MEGABYTES, N = 10, 250, 2400      # bounds for one small file and for all of them together; mutations. A hang or a leak is far beyond both.

def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

def corpus(rng) -> dict:
    "Whole files of every kind that the decoder must take, or must refuse for what they are: `{name: bytes}`."
    g = np.add.outer(np.arange(24) * 5, np.arange(36) * 3).astype(np.uint8) + rng.integers(0, 20, (24, 36), dtype=np.uint8)
    grey, rgb = Image.fromarray(g), Image.fromarray(np.stack([g, np.roll(g, 5, 0), np.roll(g, 9, 1)], 2))
    alpha = rgb.convert("RGBA"); alpha.putalpha(grey)
    exif = Image.Exif(); exif[0x0112] = 6; exif[0x010e] = "a picture"
    more = [Image.fromarray(np.roll(g, k, 1)) for k in (3, 6)]
    out = {f"{n}.png": encode(im) for n, im in dict(grey=grey, rgb=rgb, alpha=alpha, la=alpha.convert("LA"), palette=rgb.convert("P", palette=Image.Palette.ADAPTIVE), bit=grey.convert("1"),
                                                   bits16=Image.fromarray(g.astype(np.uint16) * 200)).items()}
    out["transparent_palette.png"] = encode(rgb.convert("P"), transparency=3)
    out |= {f"{n}.jpg": encode(im, "JPEG", **kw) for n, im, kw in [("grey", grey, {}), ("rgb", rgb, {}), ("cmyk", rgb.convert("CMYK"), {}), ("progressive", rgb, dict(progressive=True)), ("rotated", rgb, dict(exif=exif))]}
    out |= {f"{n}.webp": encode(im, "WEBP", **kw) for n, im, kw in [("lossy", rgb, {}), ("lossless", rgb, dict(lossless=True)), ("alpha", alpha, dict(exif=exif))]}
    out |= {f"{n}.bmp": encode(im, "BMP") for n, im in dict(grey=grey, rgb=rgb, palette=rgb.convert("P"), bit=grey.convert("1")).items()} | {"grey.gif": encode(grey, "GIF"), "rgb.gif": encode(rgb, "GIF")}
    out |= {f"animated.{f.lower()}": encode(grey if f != "WEBP" else rgb, f, save_all=True, append_images=more) for f in ("GIF", "WEBP", "PNG")}
    out |= {f"foreign.{f.lower()}": encode(rgb, f) for f in ("TIFF", "PPM", "ICO", "PDF")}
    return out | {"empty.png": b"", "page.jpg": b"<html><body>404 Not Found</body></html>", "zeros.png": bytes(500), "noise.webp": rng.bytes(700), "text.png": "ein Bild\n".encode() * 9}

def declare(data: bytes, w: int, h: int) -> bytes:
    "The file with another declared size in its header, checksums mended, for the five formats."
    b = bytearray(data)
    if data[1:4] == b"PNG": b[16:24] = struct.pack(">II", w, h); b[29:33] = struct.pack(">I", zlib.crc32(b[12:29]))
    elif data[:2] == b"BM": b[18:26] = struct.pack("<ii", w % 2**31, h % 2**31)
    elif data[:3] == b"GIF": b[6:10] = struct.pack("<HH", w % 65536, h % 65536)
    elif data[:2] == b"\xff\xd8":
        i = min((k for k in (data.find(m) for m in (b"\xff\xc0", b"\xff\xc2")) if k > 0), default=0)
        if i: b[i+5:i+9] = struct.pack(">HH", h % 65536, w % 65536)
    elif data[12:16] == b"VP8X": b[24:30] = (w % 2**24).to_bytes(3, "little") + (h % 2**24).to_bytes(3, "little")
    elif data[12:16] == b"VP8 ": b[26:30] = struct.pack("<HH", w % 16384, h % 16384)
    elif data[12:16] == b"VP8L": b[21:25] = struct.pack("<I", (w - 1) % 16384 | (h - 1) % 16384 << 14)
    return bytes(b)

def _flip(d, rng):
    b = bytearray(d)
    for i in rng.integers(0, len(b), rng.integers(1, 12)): b[i] ^= 1 << rng.integers(8)
    return bytes(b)

def _head(d, rng):
    "Random bytes in the first sixty, where the headers are."
    b = bytearray(d)
    for i in rng.integers(0, min(60, len(b)), rng.integers(1, 5)): b[i] = rng.integers(256)
    return bytes(b)

def _cut(d, rng): a, b = sorted(rng.integers(0, len(d) + 1, 2)); return d[:a] + d[b:]
def _twice(d, rng): a, b = sorted(rng.integers(0, len(d) + 1, 2)); return d[:b] + d[a:]
def _zero(d, rng): a, b = sorted(rng.integers(0, len(d) + 1, 2)); return d[:a] + bytes(b - a) + d[b:]
def _size(d, rng): return declare(d, *(int(rng.choice([0, 1, 7, 8, 35, 37, 300, 2000, 16_384, 16_385, 60_000, 2**24 - 1, 2**31 - 1])) for _ in "wh"))

MUTATIONS = dict(truncate=lambda d, rng: d[:rng.integers(len(d))], flip=_flip, head=_head, cut=_cut, twice=_twice, zero=_zero, size=_size,
                 insert=lambda d, rng: d[:(i := rng.integers(len(d)))] + rng.bytes(rng.integers(1, 40)) + d[i:], trailing=lambda d, rng: d + rng.bytes(rng.integers(1, 300)))

def attacks(files: dict) -> dict:
    "Files that are made to hurt, each with a word that its reason must hold (None: pixels or any reason)."
    png, z = files["grey.png"], zlib.compress(bytes(100_000_000), 9)
    after = lambda *c: png[:33] + b"".join(c) + png[33:]
    out = {f"declared {s} {n}": (declare(files[n], s, s), "refused before decoding") for s in (17_000, 40_000) for n in ("grey.png", "rgb.png", "rgb.jpg", "progressive.jpg", "cmyk.jpg", "rgb.bmp", "grey.gif")}
    out |= {f"bomb {s}": (bomb(png, s), "refused before decoding") for s in (7_100, 60_000, 2**31 - 1)}
    out |= {"profile bomb": (after(chunk(b"iCCP", b"x\0\0" + z)), None), "text bomb": (after(chunk(b"zTXt", b"x\0\0" + z)), None), "pixel bomb": (png[:33] + chunk(b"IDAT", z) + chunk(b"IEND", b""), None),
            "many texts": (after(*[chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(900_000), 9))] * 90), None), "endless exif": (after(chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\1\x12\0\2\xff\xff\xff\xff\0\0\0\0" * 2000)), None),
            "many frames": (files["animated.gif"][:-1] + files["animated.gif"][files["animated.gif"].rfind(b"\x2c"):-1] * 20_000 + b";", "animated"),
            "long": (encode(np.zeros((8, 16_384), np.uint8)), None), "tiny": (encode(np.zeros((7, 30), np.uint8)), "too small"), "fat": (bytes(Settings().max_bytes + 1), "bytes, more than")}
    return out

def scan_bomb(side: int, scans: int) -> bytes:
    "A progressive JPEG whose last scan, a few bytes that cost a pass over the whole picture, is repeated."
    raw = encode(Image.new("RGB", (side, side), (90, 120, 40)), "JPEG", progressive=True)
    return raw[:-2] + raw[raw.rfind(b"\xff\xda"):-2] * scans + raw[-2:]

def judge(name, data, pixels, info, cpu) -> str:
    "What is wrong with this outcome ('' if nothing)."
    if (pixels is None) != bool(info["reason"]): return f"{name}: neither pixels nor a reason, or both: {info}"
    if cpu > CPU_SECONDS: return f"{name}: {cpu:.1f} s of processor time"
    if pixels is None: return "" if "\n" not in info["reason"] and len(info["reason"]) < 200 else f"{name}: the reason is no line: {info['reason']!r}"
    s, side = Settings(), pixels.shape[:2]
    good = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[2:] in ((), (3,)) and s.min_side <= min(side) and max(side) <= s.max_side and np.prod(side) <= s.max_pixels
    return "" if good and info["format"] in FORMATS and sorted(side) == sorted([info["width"], info["height"]]) else f"{name}: {pixels.dtype} {pixels.shape} from {info}"

def child(out):
    rng, start = np.random.default_rng(0), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = corpus(rng); names, kinds = list(files), list(MUTATIONS)
    usable = [n for n in names if len(files[n]) > 60]
    hurt = attacks(files)
    cases = [(n, d, None) for n, d in files.items()] + [(n, d, want) for n, (d, want) in hurt.items()]
    for i in range(N):
        kind, n = kinds[i % len(kinds)], usable[int(rng.integers(len(usable)))]
        d = MUTATIONS[kind](files[n], rng)
        if rng.random() < .3 and d: d = MUTATIONS[(kind := str(rng.choice(kinds)))](d, rng)      # some are hurt twice
        cases.append((f"{i} {kind} {n}", d, None))
    cases += [(f"splice {a} {b}", files[a][:k] + files[b][k:], None) for a, b in zip(usable, usable[1:] + usable[:1]) for k in (30, 60, 200)]
    bad, counts, slowest, items = [], dict(pixels=0, reason=0), (0., ""), []
    for name, data, want in cases:
        Path(out + ".at").write_text(name)                      # what a crash was at
        t = time.process_time()
        pixels, info = decode(data)
        cpu = time.process_time() - t; slowest = max(slowest, (cpu, name))
        if (why := judge(name, data, pixels, info, cpu)): bad.append(why)
        if want and want not in info["reason"]: bad.append(f"{name}: {info['reason'] or 'pixels'!r} instead of '{want}'")
        counts["pixels" if pixels is not None else "reason"] += 1
        if len(data) < 1_000_000: items.append(Item(f"{len(items)} {name}", data))
    Path(out + ".at").write_text("measure")
    t = time.process_time(); table, thumbs = measure(items); cpu = time.process_time() - t
    signals = table[list(SIGNALS)].to_numpy(float)
    if table.id.tolist() != [i.id for i in items] or len(thumbs) != len(items): bad.append("measure lost an item")
    if not (np.isfinite(signals).all(1) == (table.reason == "")).all() or not (np.isnan(signals).all(1) == (table.reason != "")).all(): bad.append("measure: signals without pixels, or pixels without signals")
    if cpu > CPU_SECONDS * 6: bad.append(f"measure: {cpu:.1f} s")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / (1024 if sys.platform != "darwin" else 1024**2)
    Path(out).write_text(json.dumps(dict(bad=bad, n=len(cases), kinds=len(files), counts=counts, slowest=slowest, megabytes=grown, cpu=time.process_time())))

def test_every_file_ends_as_pixels_or_a_reason(tmp_path):
    out = tmp_path/"out.json"
    r = subprocess.run([sys.executable, __file__, str(out)], env=os.environ | dict(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=600)
    at = Path(f"{out}.at").read_text() if Path(f"{out}.at").exists() else "the start"
    assert r.returncode == 0 and out.exists(), f"the decoder died (exit {r.returncode}) at: {at}\n{r.stderr[-2000:]}"
    got = json.loads(out.read_text()); print(got)
    assert not got["bad"], "\n".join(got["bad"][:20])
    assert got["n"] >= 2000 and min(got["counts"].values()) > 200, got
    assert got["megabytes"] < MEGABYTES, got

def test_the_corpus_is_understood():
    "Before it is damaged: what is an image of the five formats has pixels, rotation and colour are undone, everything else has its reason."
    files = corpus(np.random.default_rng(0)); out = {n: decode(d) for n, d in files.items()}
    refused = {n: info["reason"] for n, (p, info) in out.items() if p is None}
    assert sorted(refused) == sorted(n for n in files if n.split(".")[0] in ("animated", "foreign", "empty", "page", "zeros", "noise", "text")), refused
    assert all("animated" in why for n, why in refused.items() if n.startswith("animated"))
    assert out["rotated.jpg"][0].shape == (36, 24, 3) and out["rgb.jpg"][0].shape == (24, 36, 3)
    assert out["bits16.png"][0].shape == out["grey.png"][0].shape == out["grey.bmp"][0].shape == (24, 36)
    assert np.abs(out["cmyk.jpg"][0].astype(int).mean((0, 1)) - out["rgb.jpg"][0].mean((0, 1))).max() < 12      # inks are not taken for light
    assert np.array_equal(decode(files["rgb.png"])[0], decode(files["rgb.bmp"])[0])

def test_a_jpeg_of_endless_scans_is_refused():
    assert decode(scan_bomb(400, 5))[0] is not None
    pixels, info = decode(scan_bomb(400, 300))
    assert pixels is None and "scans" in info["reason"]

if __name__ == "__main__": child(sys.argv[1])
