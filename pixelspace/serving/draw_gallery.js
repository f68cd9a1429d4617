// What was drawn, kept by this browser and nowhere else: the newest drawings, of MOST bytes in all. A browser may refuse,
// as private windows and full disks do; then they last as long as the page.

const MOST = 256 * 2 ** 20;
const NAME = "drawings";
let database = null;

const ended = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

function opened() {
  const opening = indexedDB.open("pixelspace", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(NAME, { autoIncrement: true });
  return ended(opening);
}

async function drawings(mode) {
  database ??= opened();
  return (await database).transaction(NAME, mode).objectStore(NAME);
}

const sizeOf = (drawing) => drawing.images.flatMap(({ files }) => files).reduce((sum, file) => sum + file.size, 0);

// Drops the oldest beyond MOST bytes.
function trim(store) {
  const asking = store.openCursor(null, "prev");
  let bytes = 0;
  return new Promise((resolve, reject) => {
    asking.onerror = () => reject(asking.error);
    asking.onsuccess = () => {
      const one = asking.result;
      if (one === null) return resolve();
      bytes += sizeOf(one.value);
      if (bytes > MOST) one.delete();
      one.continue();
    };
  });
}

// Whether a drawing is kept: plain data, and `images` with their `files` as Blobs.
export async function keep(drawing) {
  try {
    const store = await drawings("readwrite");
    await ended(store.add(drawing));
    await trim(store);
    return true;
  } catch {
    return false;
  }
}

// All that is kept, the oldest first.
export async function kept() {
  try {
    return await ended((await drawings("readonly")).getAll());
  } catch {
    return [];
  }
}

export async function forget() {
  try {
    await ended((await drawings("readwrite")).clear());
  } catch {
    return;
  }
}
