// The TypeScript SDK of the 1.x and the 2.x line, with results of several sizes. Arguments: the folder with node_modules,
// the line (1 or 2), sizes as numbers of prompts ("600,1200"), and the server's URL or command line.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, line, sizes, command, ...args] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const load = async (name) => import(pathToFileURL(require.resolve(name)).href);
const first = line === "1";
const { Client } = await load(first ? "@modelcontextprotocol/sdk/client/index.js" : "@modelcontextprotocol/client");
const { StdioClientTransport } = await load(
  first ? "@modelcontextprotocol/sdk/client/stdio.js" : "@modelcontextprotocol/client/stdio",
);
const { StreamableHTTPClientTransport } = await load(
  first ? "@modelcontextprotocol/sdk/client/streamableHttp.js" : "@modelcontextprotocol/client",
);

const client = new Client({ name: "test", version: "1" });
const transport = command.startsWith("http")
  ? new StreamableHTTPClientTransport(new URL(command))
  : new StdioClientTransport({ command, args, env: process.env });
await client.connect(transport);
const found = { server: client.getServerVersion(), tools: (await client.listTools()).tools, sizes: [] };
const call = async (name, given) =>
  first ? client.callTool({ name, arguments: given }, undefined, { timeout: 60_000 })
        : client.callTool({ name, arguments: given }, { timeout: 60_000 });

for (const prompts of sizes.split(",").map(Number)) {
  const result = await call("generate", { prompt_ls: Array.from({ length: prompts }, (_, n) => `${n}`) });
  const { ans_ls: answers, errors = [], kept_job_id: kept } = result.structuredContent;
  const omitted = errors.find((entry) => entry.code === "omitted");
  const met = { prompts, length: answers.length, last: omitted?.last, linked: result.content.some((block) => block.type === "resource_link") };
  let characters = answers.reduce((sum, answer) => sum + answer.length, 0);
  let offset = omitted?.index;
  while (kept !== undefined && offset !== null) {
    const page = (await call("bulk_status", { job_id: kept, read: "all", offset, limit: 1000 })).structuredContent;
    characters += page.rows.reduce((sum, row) => sum + row.answer.length, 0);
    offset = page.next_offset;
  }
  found.sizes.push({ ...met, characters });
}
found.after = (await call("generate", { prompt_ls: ["hi again"] })).structuredContent;
console.log(JSON.stringify(found));
await client.close();
