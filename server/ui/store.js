// The history: conversations and drawings in IndexedDB, in memory where the browser has none to
// give. Knows what an item is called and when it changed, not what is in it.

const NAME = "janus-serve";
const STORE = "items";

let opening = null;
const memory = new Map();

function open() {
  opening ??= new Promise((resolve) => {
    let request;
    try {
      request = indexedDB.open(NAME, 1);
    } catch {
      resolve(null);
      return;
    }
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(null);
    request.onblocked = () => resolve(null);
  });
  return opening;
}

async function run(mode, operate) {
  const database = await open();
  if (!database) return undefined;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = operate(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

/** Keep an item `{id, kind, title, ...}`; a newer one with the same id takes its place. */
export async function keep(item) {
  const kept = { ...structuredClone(item), changed: Date.now() };
  memory.set(kept.id, kept);
  try {
    await run("readwrite", (store) => store.put(kept));
  } catch {
    // A full disk must not end a conversation; the item lives as long as the tab does.
  }
}

/** All items, the newest first. */
export async function items() {
  const kept = new Map(memory);
  for (const item of (await run("readonly", (store) => store.getAll())) ?? []) kept.set(item.id, item);
  return [...kept.values()].sort((a, b) => b.changed - a.changed);
}

export async function forget(id) {
  memory.delete(id);
  await run("readwrite", (store) => store.delete(id));
}

export async function forgetAll() {
  memory.clear();
  await run("readwrite", (store) => store.clear());
}
