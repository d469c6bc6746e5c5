// dicomweb-client, as programs that run on Node use it.
//
//   node client.mjs < {"root": URL, "headers": {...}, "calls": [[method, options], ...]} > [result, ...]
//
// The headers are added to every request. A method is one of DICOMwebClient. `files` in the options of storeInstances are paths. A result is {"value": ...}, or
// {"status": ...} of a request that failed; what is binary becomes {"base64": ..., "contentType": ...}.
// The client expects the XMLHttpRequest of browsers, which Node does not have.

import { readFileSync } from "node:fs";
import client from "dicomweb-client";
import XMLHttpRequest from "xhr2";

globalThis.XMLHttpRequest = XMLHttpRequest;

function printable(value) {
  if (value instanceof ArrayBuffer) {
    return { base64: Buffer.from(value).toString("base64"), contentType: value.contentType };
  }
  return Array.isArray(value) ? value.map(printable) : value;
}

function contentOf(path) {
  const content = readFileSync(path);
  return content.buffer.slice(content.byteOffset, content.byteOffset + content.byteLength);
}

async function call(server, method, { files, ...options }) {
  if (files) {
    options.datasets = files.map(contentOf);
  }
  try {
    return { value: printable(await server[method](options)) };
  } catch (error) {
    if (error.status === undefined) {
      throw error;
    }
    return { status: error.status };
  }
}

const { root, headers, calls } = JSON.parse(readFileSync(0));
const server = new client.api.DICOMwebClient({ url: root, headers, verbose: false });
const results = [];
for (const [method, options] of calls) {
  results.push(await call(server, method, options));
}
process.stdout.write(JSON.stringify(results));
