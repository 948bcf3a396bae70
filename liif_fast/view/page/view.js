// Zoom continuously into one photograph. The scale is any number, and the tiles are those of the photograph enlarged to
// exactly N x M = round(W s) x round(H s) pixels, so that a pixel of the screen is a pixel of the output.
const TILE = 256; // pixels a side
const IN_FLIGHT = 2; // the server renders one after the other; one more waits, so that it never idles
const SETTLE = 120; // milliseconds after the last move before tiles are asked for
const LARGEST = 30, GRID_FROM = 6, TRAINED_TO = 4.5;
const KEPT = 400; // tiles; 100 MiB of pixels. A screen that needs more than half of them keeps more.

const $ = id => document.getElementById(id);
const canvas = $("canvas"), pen = canvas.getContext("2d");
const told = await (await fetch("page.json")).json();
const images = `iiif/3/${encodeURIComponent(told.name)}`;

/** Fetch a picture; throws with the server's words. */
async function picture(address, signal) {
  const answer = await fetch(address, { signal });
  if (!answer.ok) {
    const message = (await answer.text()).trim() || answer.statusText;
    throw Object.assign(new Error(message), { status: answer.status });
  }
  return createImageBitmap(await answer.blob(), { colorSpaceConversion: "default" });
}

const [info, photo] = await Promise.all([
  fetch(`${images}/info.json`).then(answer => answer.json()),
  picture(`${images}/full/!1024,1024/0/default.${told.tiles}`),
]).catch(error => {
  Object.assign($("note"), { textContent: error.message, hidden: false });
  throw error;
});
const W = info.width, H = info.height;

// Where we are: the centre in pixels of the photograph, and the scale in screen pixels for one of them.
const at = { x: W / 2, y: H / 2, s: 1 };
let border = 0.5, other = "bicubic", grid = false, settling = 0, failed = 0, shown = 0;
const tiles = new Map(); // key -> {image, ...}, the least recently drawn first
const wanted = new Map(); // key -> {..., abort} not here yet

const full = () => ({ N: Math.max(1, Math.round(W * at.s)), M: Math.max(1, Math.round(H * at.s)) });
const smallest = () => Math.min(1, canvas.width / W, canvas.height / H) / 2;
/** The top left corner of the screen in the enlarged photograph, whole pixels. */
function corner() {
  const { N, M } = full();
  return [Math.round((at.x / W) * N - canvas.width / 2), Math.round((at.y / H) * M - canvas.height / 2)];
}
/** Whether the model makes what is seen; if not, it is the photograph, at its size or reduced. */
const enlarged = () => full().N > W || full().M > H;
/** The part of the enlarged photograph that is on the screen. */
function onScreen() {
  const { N, M } = full(), [left, top] = corner();
  const x = Math.max(0, left), y = Math.max(0, top);
  return { N, M, x, y, w: Math.min(N, left + canvas.width) - x, h: Math.min(M, top + canvas.height) - y };
}

function draw() {
  const { N, M } = full(), [left, top] = corner(), size = `${N}x${M}`, across = Math.round(border * canvas.width);
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.fillStyle = "#1b1b1d";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  for (const quality of other ? ["default", other] : ["default"]) {
    pen.save();
    pen.beginPath();
    if (!other) pen.rect(0, 0, canvas.width, canvas.height);
    else if (quality === "default") pen.rect(across, 0, canvas.width - across, canvas.height);
    else pen.rect(0, 0, across, canvas.height);
    pen.clip();
    // At once: the browser's interpolation of the photograph, and tiles of other scales over it.
    pen.imageSmoothingEnabled = quality !== "nearest";
    pen.imageSmoothingQuality = "high";
    pen.drawImage(photo, -left, -top, N, M);
    for (const tile of tiles.values()) {
      const f = N / tile.N;
      if (tile.size !== size && tile.quality === quality && quality !== "nearest" && f > 0.25 && f < 4)
        pen.drawImage(tile.image, tile.x * f - left, tile.y * f - top, tile.w * f, tile.h * f);
    }
    pen.imageSmoothingEnabled = false;
    for (const tile of tiles.values())
      if (tile.size === size && tile.quality === quality) {
        pen.clearRect(tile.x - left, tile.y - top, tile.w, tile.h); // under a transparent tile nothing may show
        pen.drawImage(tile.image, tile.x - left, tile.y - top);
      }
    pen.restore();
  }
  if (grid && at.s >= GRID_FROM) drawGrid(N, M, left, top);
  tell(N, M);
}

function drawGrid(N, M, left, top) {
  pen.strokeStyle = "#fff4";
  pen.lineWidth = 1;
  pen.beginPath();
  for (let x = Math.max(0, Math.ceil((left * W) / N)); x <= W && (x * N) / W < left + canvas.width; x++) {
    const X = Math.round((x * N) / W - left) + 0.5;
    pen.moveTo(X, Math.max(0, -top));
    pen.lineTo(X, Math.min(canvas.height, M - top));
  }
  for (let y = Math.max(0, Math.ceil((top * H) / M)); y <= H && (y * M) / H < top + canvas.height; y++) {
    const Y = Math.round((y * M) / H - top) + 0.5;
    pen.moveTo(Math.max(0, -left), Y);
    pen.lineTo(Math.min(canvas.width, N - left), Y);
  }
  pen.stroke();
}

/** Write what is seen: the scale, the window, and how far the pixels are what they claim to be. */
function tell(N, M) {
  const { x, y, w, h } = onScreen(), round = value => Math.round(value * 10) / 10;
  $("scale").textContent = `×${at.s.toFixed(2)}  ${N}×${M} of ${W}×${H}`;
  $("window").textContent = `window ${round(w / at.s)}×${round(h / at.s)} at ${round(x / at.s)}, ${round(y / at.s)}`;
  let state = "exact", text = "exact";
  if (settling) [state, text] = ["moving", "moving: the browser's interpolation"];
  else if (failed) [state, text] = ["failed", `${failed} tiles failed`];
  else if (wanted.size) [state, text] = ["coming", `${wanted.size} to come`];
  else if (at.s < 1) [state, text] = ["reduced", "the photograph, reduced"];
  else if (!enlarged()) text = "exact: the photograph itself";
  document.body.dataset.state = state;
  if ($("state").textContent !== text) $("state").textContent = text;
  $("beyond").hidden = at.s <= TRAINED_TO;
  $("left").hidden = $("split").hidden = false;
  $("left").textContent = other || "no comparison";
  $("split").hidden = !other;
  $("split").style.left = `${border * 100}%`;
  $("split").setAttribute("aria-valuenow", Math.round(border * 100));
}

/** Find the tiles that the screen needs, forget requests for others, and ask for those that are missing. */
function plan() {
  settling = failed = 0;
  const need = new Map();
  const { N, M, x, y, w, h } = onScreen(), [left, top] = corner(), across = Math.round(border * canvas.width);
  for (const quality of other ? ["default", other] : ["default"])
    for (let row = Math.floor(y / TILE); row * TILE < y + h; row++)
      for (let column = Math.floor(x / TILE); column * TILE < x + w; column++) {
        const tile = { quality, N, M, size: `${N}x${M}`, x: column * TILE, y: row * TILE };
        tile.w = Math.min(TILE, N - tile.x);
        tile.h = Math.min(TILE, M - tile.y);
        const edge = tile.x - left;
        if (other && (quality === "default" ? edge + tile.w <= across : edge >= across)) continue;
        // The comparison takes no time; the model's tiles come centre first.
        const far = Math.hypot(edge + tile.w / 2 - canvas.width / 2, tile.y - top + tile.h / 2 - canvas.height / 2);
        tile.rank = quality === "default" ? far : far - 1e9;
        need.set(`${quality} ${tile.size} ${tile.x},${tile.y}`, tile);
      }
  shown = need.size;
  for (const [key, tile] of wanted)
    if (!need.has(key)) {
      wanted.delete(key);
      tile.abort?.abort();
    }
  for (const [key, tile] of need) {
    if (tiles.has(key)) {
      const kept = tiles.get(key);
      tiles.delete(key);
      tiles.set(key, kept);
    } else if (!wanted.has(key)) wanted.set(key, tile);
    else wanted.get(key).rank = tile.rank;
  }
  ask();
  draw();
}

function ask() {
  const waiting = [...wanted].filter(([, tile]) => !tile.abort).sort((a, b) => a[1].rank - b[1].rank);
  const free = IN_FLIGHT - [...wanted.values()].filter(tile => tile.abort).length;
  for (const [key, tile] of waiting.slice(0, Math.max(0, free))) load(key, tile);
}

/** The address of a tile; a photograph that is reduced has no enlarged image, and its parts are named in percent. */
function addressOf({ N, M, size, x, y, w, h, quality }) {
  if (N >= W && M >= H) return `${images}@${size}/${x},${y},${w},${h}/max/0/${quality}.${told.tiles}`;
  const part = [x / N, y / M, w / N, h / M].map(each => (100 * each).toFixed(9));
  return `${images}/pct:${part}/${w},${h}/0/${quality}.${told.tiles}`;
}

async function load(key, tile) {
  tile.abort = new AbortController();
  try {
    tile.image = await picture(addressOf(tile), tile.abort.signal);
    if (wanted.get(key) === tile) wanted.delete(key);
    tiles.set(key, tile);
    while (tiles.size > Math.max(KEPT, 2 * shown)) tiles.delete(tiles.keys().next().value);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 503 || error.status === 499) {
      await new Promise(done => setTimeout(done, 500));
      tile.abort = undefined; // asked for again, if it is still wanted
    } else {
      failed++;
      wanted.delete(key);
      note(error.message);
    }
  }
  ask();
  draw();
}

function moved() {
  at.x = Math.min(W, Math.max(0, at.x));
  at.y = Math.min(H, Math.max(0, at.y));
  clearTimeout(settling);
  settling = setTimeout(() => {
    plan();
    const place = new URLSearchParams({ x: at.x.toFixed(2), y: at.y.toFixed(2), s: at.s.toFixed(4) });
    history.replaceState(null, "", `?${place}`);
  }, SETTLE);
  draw();
}

/** Zoom by a factor about a point of the screen, which stays where it is. */
function zoom(factor, x = canvas.width / 2, y = canvas.height / 2) {
  const s = Math.min(LARGEST, Math.max(smallest(), at.s * factor)), change = 1 / at.s - 1 / s;
  at.x += (x - canvas.width / 2) * change;
  at.y += (y - canvas.height / 2) * change;
  at.s = s;
  moved();
}

function fit() {
  Object.assign(at, { x: W / 2, y: H / 2, s: Math.min(LARGEST, canvas.width / W, canvas.height / H) });
  moved();
}

function resize() {
  canvas.width = Math.round(innerWidth * devicePixelRatio);
  canvas.height = Math.round(innerHeight * devicePixelRatio);
}

function setBorder(value) {
  border = Math.min(1, Math.max(0, value));
  moved();
}

let noted = 0;
function note(text) {
  $("note").textContent = text;
  $("note").hidden = false;
  clearTimeout(noted);
  noted = setTimeout(() => ($("note").hidden = true), 6000);
}

/** Save the window as the server makes it: 16 bits and the colour profile stay. */
function save() {
  if (!enlarged()) return note("zoom in: up to ×1 nothing is upscaled");
  const { N, M, x, y, w, h } = onScreen(), link = document.createElement("a");
  link.href = `${images}@${N}x${M}/${x},${y},${w},${h}/max/0/default.png`;
  link.download = `${told.name.replace(/\.[^.]*$/, "")}-${N}x${M}+${x}+${y}.png`;
  link.click();
}

function command() {
  const { N, M, x, y, w, h } = onScreen();
  return `liif-fast upscale ${told.photo} out.png --size ${N}x${M} --region ${w}x${h}+${x}+${y}${told.model || ""}`;
}

async function copy() {
  if (!enlarged()) return note("zoom in: up to ×1 nothing is upscaled");
  try {
    await navigator.clipboard.writeText(command());
    note(`copied: ${command()}`);
  } catch {
    note(command()); // to be copied by hand
  }
}

const STEP = 80; // pixels of the screen
const keys = {
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
  0: fit,
  1: () => zoom(1 / at.s),
  ArrowLeft: () => ((at.x -= STEP / at.s), moved()),
  ArrowRight: () => ((at.x += STEP / at.s), moved()),
  ArrowUp: () => ((at.y -= STEP / at.s), moved()),
  ArrowDown: () => ((at.y += STEP / at.s), moved()),
  ",": () => setBorder(border - 0.02),
  ".": () => setBorder(border + 0.02),
  b: () => ((other = { bicubic: "nearest", nearest: "", "": "bicubic" }[other]), plan()),
  g: () => {
    grid = !grid;
    document.querySelector("[data-key=g]").setAttribute("aria-pressed", grid);
    if (grid && at.s < GRID_FROM) note(`the grid shows from ×${GRID_FROM}`);
    draw();
  },
  s: save,
  c: copy,
  h: () => {
    $("help").hidden = !$("help").hidden;
    document.querySelector("[data-key=h]").setAttribute("aria-expanded", !$("help").hidden);
  },
};
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === $("split") && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    setBorder(border + (event.key === "ArrowLeft" ? -0.02 : 0.02));
  } else if (keys[event.key]) keys[event.key]();
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("[data-key]"))
  button.addEventListener("click", () => keys[button.dataset.key]());
$("left").addEventListener("click", keys.b);

const on = event => [event.clientX * devicePixelRatio, event.clientY * devicePixelRatio];
addEventListener("wheel", event => { // anywhere: the border lies on the picture
  event.preventDefault(); // a pinch on a touchpad comes as a wheel with ctrl
  const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? innerHeight : 1);
  zoom(2 ** (-pixels / (event.ctrlKey ? 100 : 400)), ...on(event));
}, { passive: false });
canvas.addEventListener("dblclick", event => zoom(2, ...on(event)));

const fingers = new Map(); // pointer -> its last [x, y]
canvas.addEventListener("pointerdown", event => {
  if (event.button) return; // a menu may keep the end of a right click to itself
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, on(event));
});
canvas.addEventListener("pointermove", event => {
  const before = fingers.get(event.pointerId);
  if (!before) return;
  const now = on(event), others = [...fingers].filter(([id]) => id !== event.pointerId);
  fingers.set(event.pointerId, now);
  if (!others.length) {
    at.x -= (now[0] - before[0]) / at.s;
    at.y -= (now[1] - before[1]) / at.s;
    return moved();
  }
  const [, still] = others[0]; // two fingers: their middle moves the picture, their distance zooms
  const gap = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
  at.x -= (now[0] - before[0]) / 2 / at.s;
  at.y -= (now[1] - before[1]) / 2 / at.s;
  zoom(gap(now, still) / Math.max(1, gap(before, still)), (now[0] + still[0]) / 2, (now[1] + still[1]) / 2);
});
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, event => fingers.delete(event.pointerId));
$("split").addEventListener("pointerdown", event => $("split").setPointerCapture(event.pointerId));
$("split").addEventListener("pointermove", event => {
  if ($("split").hasPointerCapture(event.pointerId)) setBorder(event.clientX / innerWidth);
});
addEventListener("resize", () => {
  resize();
  moved();
});

/** Go to a place; for links and tests. */
function go(x, y, s) {
  Object.assign(at, { x, y, s: Math.min(LARGEST, Math.max(smallest(), s)) });
  moved();
}
resize();
const place = new URLSearchParams(location.search), asked = ["x", "y", "s"].map(key => Number(place.get(key)));
if (place.has("s") && asked.every(Number.isFinite) && asked[2] > 0) go(...asked);
else fit();
document.title = `${told.name} – liif-fast view`;
globalThis.view = { go, command, onScreen, requested: () => [...wanted.keys()] };
