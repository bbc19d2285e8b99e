// From files of any kind a browser can show to what the server takes: a data URL of a known type,
// within its limits. Reads and scales; sends nothing.

const TAKEN = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]);
const MAX_SIDE_PX = 2048;

/** `{url, name}` of a file. Throws an Error in words. */
export async function readImage(file, limits = {}) {
  const name = file.name || "pasted image";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${name} is not an image this browser can read.`);
  }
  const pixels = bitmap.width * bitmap.height;
  const fits = pixels <= (limits.max_image_pixels ?? 25e6) && file.size <= (limits.max_image_bytes ?? 10e6);
  if (TAKEN.has(file.type) && fits) {
    bitmap.close();
    return { url: await dataUrl(file), name };
  }
  // Another type, or larger than the server takes: the same picture, drawn anew.
  const scale = Math.min(1, MAX_SIDE_PX / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const type = pixels > 1e6 ? "image/jpeg" : "image/png";
  return { url: await dataUrl(await canvas.convertToBlob({ type, quality: 0.92 })), name };
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

/** The image files of a drop or a paste. */
export function imagesIn(transfer) {
  return [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
}

/** A file name that says what is in it. */
export function fileName(prompt, seed, extension = "png") {
  const words = prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 48);
  return `${words || "picture"}-${seed}.${extension}`;
}
