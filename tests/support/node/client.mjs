// What a JavaScript user does with the service, by the real package `openai`: `node client.mjs CASE URL PICTURE [KEY]`.
// A case prints what came of it as JSON. It judges nothing: that is for the tests, which also see what the service did.

import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import OpenAI, { toFile } from "openai";

const [name, url, path, apiKey = "none"] = process.argv.slice(2);
const prompt = "a wizard";
const image = await toFile(createReadStream(path));
// Nothing is tried again where that is not the point: a second try would hide what the first one met.
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });

// The fields that the package documents, and that programs decide by.
async function refusal(call) {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    const { status, code, param, type, requestID, message } = error;
    return { kind: error.constructor.name, status, code, param, type, requestID, message };
  }
  throw new Error("It was not refused.");
}

// A client that tells of each request that it sends; the package itself says nothing about those it tries again.
function watched(options, tell) {
  const fetchAndTell = async (address, request) => {
    const sent = performance.now();
    const answer = await fetch(address, request);
    // Before its first form the package fetches a data: URL, to see what kind of fetch this is.
    if (String(address).startsWith(url)) tell({ request, answer, sent, answered: performance.now() });
    return answer;
  };
  return client.withOptions({ ...options, fetch: fetchAndTell });
}

async function tried(call) {
  const tries = [];
  const patient = watched({ maxRetries: 5 }, ({ answer, sent, answered }) =>
    tries.push({ status: answer.status, wait: Number(answer.headers.get("retry-after")), sent, answered }),
  );
  return { outcome: await call(patient), tries };
}

const cases = {
  // The package sends these differently: a stream in pieces of no declared length, a file whole, a list as `image[]`.
  async ways() {
    const images = {
      stream: createReadStream(path),
      file: image,
      named: await toFile(await readFile(path), "in.png", { type: "image/png" }),
      list: [createReadStream(path)],
    };
    const extra = { strength: 0.5, seed: 7, num_inference_steps: 6, fit: "crop" };
    const answers = {};
    for (const [way, given] of Object.entries(images)) {
      const answer = await client.images.edit({ image: given, prompt, ...extra });
      answers[way] = { ...answer, requestID: answer._request_id };
    }
    return answers;
  },

  async kinds() {
    const hints = { size: "512x512", background: "opaque", quality: "high", input_fidelity: "high", user: "me" };
    const webp = { output_format: "webp", output_compression: 20, ...hints };
    return {
      several: await client.images.edit({ image, prompt, n: 3, seed: 40, response_format: "b64_json" }),
      webp: await client.images.edit({ image, prompt, ...webp }),
      url: await client.images.edit({ image, prompt, output_format: "jpeg", response_format: "url" }),
      variation: await client.images.createVariation({ image, n: 2, response_format: "b64_json" }),
    };
  },

  async models() {
    const listed = [];
    for await (const model of client.models.list()) listed.push(model.id);
    return {
      listed,
      // The package escapes the slash.
      retrieved: await client.models.retrieve("some/turbo"),
      edited: await client.images.edit({ image, prompt, model: "some/turbo" }),
      unknown: await refusal(client.models.retrieve("gpt-image-1")),
      refused: await refusal(client.images.edit({ image, prompt, model: "gpt-image-1" })),
    };
  },

  async refusals() {
    const fields = {
      strength: { strength: 0.1 },
      mask: { mask: image },
      size: { size: "1024x1024" },
      background: { background: "transparent" },
      n: { n: 11 },
      partial_images: { partial_images: 2 },
      output_format: { output_format: "gif" },
      strenght: { strenght: 1 },
      image: { image: [image, image] },
    };
    const refused = {};
    for (const [param, wrong] of Object.entries(fields)) {
      refused[param] = await refusal(client.images.edit({ image, prompt, ...wrong }));
    }
    return refused;
  },

  async others() {
    const gif = await toFile(Buffer.from("GIF89a"), "in.gif");
    return {
      picture: await refusal(client.images.edit({ image: gif, prompt })),
      route: await refusal(client.images.generate({ prompt })),
      stream: await refusal(client.images.edit({ image, prompt, stream: true, strength: 0.1 })),
      once: await tried((patient) => refusal(patient.images.edit({ image, prompt: "fail_at=0" }))),
    };
  },

  // Whoever is refused before all is read may still be sending, and has to hear of it nevertheless.
  async early() {
    return {
      file: await refusal(client.images.edit({ image, prompt })),
      stream: await refusal(client.images.edit({ image: createReadStream(path), prompt })),
    };
  },

  async keys() {
    const right = client.withOptions({ apiKey: "right" });
    return { ...(await cases.early()), right: await right.images.edit({ image, prompt }) };
  },

  async stream() {
    const asked = { image, stream: true, partial_images: 2, num_inference_steps: 8, strength: 1, seed: 3 };
    const follow = async (prompt, events) => {
      for await (const event of await client.images.edit({ ...asked, prompt })) events.push(event);
    };
    const [events, begun] = [[], []];
    await follow(prompt, events);
    return { events, error: await refusal(follow("fail_at=5", begun)), begun };
  },

  async leaving() {
    const slow = { prompt: "tick=0.2", num_inference_steps: 8, strength: 1 };
    for await (const event of await client.images.edit({ image, stream: true, partial_images: 3, ...slow })) {
      return event.type;
    }
  },

  async busy() {
    return {
      // A stream is gone once it was sent, so the package cannot try again.
      stream: await tried((patient) => refusal(patient.images.edit({ image: createReadStream(path), prompt }))),
      file: await tried((patient) => patient.images.edit({ image, prompt })),
    };
  },

  // A page's browser asks whether it may send the headers and read the answer's; node asks nobody.
  async page() {
    const headers = { Origin: "https://friend.org" };
    const seen = [];
    const inPage = watched({ dangerouslyAllowBrowser: true, defaultHeaders: headers }, ({ request, answer }) =>
      seen.push({ sent: [...new Headers(request.headers).keys()], got: Object.fromEntries(answer.headers) }),
    );
    await inPage.images.edit({ image, prompt });
    return seen;
  },
};

console.log(JSON.stringify(await cases[name]()));
// What a caller leaves behind can be seen only while it is still there: it stays until it is told to go.
for await (const _ of process.stdin);
