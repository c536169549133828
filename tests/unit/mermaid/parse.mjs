// Parses the Mermaid pictures that standard input lists as JSON; fails at the first that is none.
import { readFileSync } from "node:fs";
import { JSDOM } from "jsdom";

globalThis.window = new JSDOM("").window;
globalThis.document = window.document;
const { default: mermaid } = await import("mermaid");
for (const picture of JSON.parse(readFileSync(0, "utf8"))) {
  const { diagramType } = await mermaid.parse(picture);
  console.log(diagramType);
}
