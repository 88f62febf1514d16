// OpenAI's SDK for JavaScript; it takes fields of /img2img beside OpenAI's own.
import { createReadStream } from "node:fs";
import { writeFile } from "node:fs/promises";
import OpenAI, { toFile } from "openai";

const url = process.env.IMG2IMG_URL ?? "http://127.0.0.1:8000";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const image = await toFile(createReadStream("scripts/demo.png"));
const response = await client.images.edit({ image, prompt: "dog wizard", strength: 0.75, seed: 42 });
await writeFile("wizard.png", Buffer.from(response.data[0].b64_json, "base64"));
