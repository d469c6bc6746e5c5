// OHIF in headless Chromium, with a DICOMweb server of another origin.
//
//   node viewer.mjs < {"folder", "port", "root", "chromium", "patients": [...], "studies": {UID: FILE.png}}
//                   > {"version", "answers", "failures", "errors", "stranger"}
//
// Serves the viewer that is in `folder` on http://127.0.0.1:port, waits until its list of what is on the DICOMweb server at
// `root` shows the names of all `patients`, opens each study, and writes what the viewport then shows to a file. `answers` are the requests that the pages made of that server, by what
// they asked for, with the status; `failures` those without an answer that they may read. `stranger` is what a page of
// yet another origin, http://localhost:port, gets to know of the server.
// Nothing but this machine can be reached from the browser.

import { createReadStream, readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import path from "node:path";
import { chromium } from "playwright-core";

const WAIT_MS = 40_000;
const MEDIA_TYPES = {
  ".css": "text/css",
  ".html": "text/html",
  ".js": "text/javascript",
  ".json": "application/json",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
};
const ARGUMENTS = [
  "--no-sandbox",
  "--use-angle=swiftshader",
  "--enable-unsafe-swiftshader", // no graphics card needed
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
];

const { folder, port, root, chromium: executablePath, patients, studies } = JSON.parse(readFileSync(0));

const configuration = {
  routerBasename: null,
  extensions: [],
  modes: [],
  showStudyList: true,
  maxNumberOfWebWorkers: 2,
  investigationalUseDialog: { option: "never" },
  defaultDataSourceName: "gateway",
  dataSources: [
    {
      namespace: "@ohif/extension-default.dataSourcesModule.dicomweb",
      sourceName: "gateway",
      configuration: {
        friendlyName: "Gateway",
        name: "gateway",
        qidoRoot: root,
        wadoRoot: root,
        wadoUriRoot: root,
        qidoSupportsIncludeField: true,
        supportsFuzzyMatching: true,
        supportsWildcard: true,
        imageRendering: "wadors",
        thumbnailRendering: "wadors",
        enableStudyLazyLoad: true,
        bulkDataURI: { enabled: true },
      },
    },
  ],
};

function serve(request, response) {
  const { pathname } = new URL(request.url, "http://127.0.0.1");
  if (pathname === "/app-config.js") {
    response.setHeader("Content-Type", "text/javascript");
    response.end(`window.config = ${JSON.stringify(configuration)};`);
    return;
  }
  let file = path.join(folder, path.normalize(pathname));
  if (!statSync(file, { throwIfNoEntry: false })?.isFile()) {
    file = path.join(folder, "index.html"); // what the path means is found out in the page
  }
  response.setHeader("Content-Type", MEDIA_TYPES[path.extname(file)] ?? "application/octet-stream");
  createReadStream(file).pipe(response);
}

function watch() {
  // In the page, before anything else: no tour over the image, and a count of the images drawn since the last new one.
  localStorage.setItem("shownTours", '["basicViewerTour"]');
  window.drawn = 0;
  document.addEventListener("CORNERSTONE_STACK_NEW_IMAGE", () => (window.drawn = 1), true);
  document.addEventListener("CORNERSTONE_IMAGE_RENDERED", () => (window.drawn += window.drawn > 0), true);
}

function kind(url) {
  const asked = url.slice(root.length).split("?")[0].split("/");
  return asked.reverse().find((each) => /^[a-z]+$/.test(each));
}

async function open(browser, report) {
  const page = await browser.newPage({ viewport: { width: 1000, height: 700 } });
  page.setDefaultTimeout(WAIT_MS);
  page.on("pageerror", (error) => report.errors.push(error.message));
  page.on("response", (response) => {
    if (response.url().startsWith(root)) {
      report.answers.push([response.request().method(), kind(response.url()), response.status()]);
    }
  });
  page.on("requestfailed", (request) => {
    if (request.url().startsWith(root)) {
      report.failures.push([request.method(), kind(request.url()), request.failure()?.errorText]);
    }
  });
  await page.addInitScript(watch);
  return page;
}

async function list(browser, report) {
  const page = await open(browser, report);
  await page.goto(`http://127.0.0.1:${port}/`);
  for (const patient of patients) {
    await page.getByText(patient, { exact: true }).first().waitFor();
  }
  await page.waitForLoadState("networkidle"); // or what is under way would count as failed
  await page.close();
}

async function show(browser, study, file, report) {
  const page = await open(browser, report);
  await page.goto(`http://127.0.0.1:${port}/viewer?StudyInstanceUIDs=${study}`);
  await page.waitForFunction(() => window.drawn > 1);
  await page.waitForLoadState("networkidle");
  const canvas = page.locator("canvas.cornerstone-canvas").first();
  let last = await canvas.screenshot();
  for (;;) {
    const next = await canvas.screenshot({ path: file });
    if (next.equals(last)) {
      break; // fonts are there and animations over
    }
    last = next;
  }
  await page.close();
}

async function strange(browser) {
  const page = await browser.newPage();
  await page.goto(`http://localhost:${port}/silent-refresh.html`);
  const answer = await page.evaluate(
    (url) => fetch(url).then((response) => response.text(), (error) => error.name),
    `${root}/studies`,
  );
  await page.close();
  return answer;
}

const server = createServer(serve);
await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
const browser = await chromium.launch({ executablePath, args: ARGUMENTS });
const report = { version: browser.version(), answers: [], failures: [], errors: [] };
try {
  await list(browser, report);
  for (const [study, file] of Object.entries(studies)) {
    await show(browser, study, file, report);
  }
  report.stranger = await strange(browser);
  process.stdout.write(JSON.stringify(report));
} catch (error) {
  process.stderr.write(`${JSON.stringify(report)}\n`);
  throw error;
} finally {
  await browser.close();
  server.closeAllConnections();
  server.close();
}
