// Drives the quickstart in three ways at once: plain chats, streamed chats (core k6 reads a stream whole)
// and SageMaker invocations. Each answer is checked for its content and for the headers that say which
// instance gave it.
//
// URL         where Forebay listens for clients
// VUS         clients in each of the three scenarios (default 8: all three fit the fleet's 36 slots)
// DURATION    how long (default 10s)
// P95_MS      longest 95th percentile allowed (default 800: the slower type needs 275 ms when unhindered)
// MAX_TOKENS  tokens in an answer (default 8)

import http from "k6/http";
import { check } from "k6";

const url = __ENV.URL || "http://127.0.0.1:8080";
const endpoint = __ENV.ENDPOINT || "my-endpoint";
const maxTokens = Number(__ENV.MAX_TOKENS || 8);
const p95 = Number(__ENV.P95_MS || 800);
const json = { "content-type": "application/json" };

const scenario = (exec) => ({
  executor: "constant-vus",
  exec,
  vus: Number(__ENV.VUS || 8),
  duration: __ENV.DURATION || "10s",
});

export const options = {
  scenarios: { plain: scenario("plain"), stream: scenario("stream"), invocation: scenario("invocation") },
  thresholds: {
    checks: ["rate==1"],
    http_req_failed: ["rate==0"],
    "http_req_duration{scenario:plain}": [`p(95)<${p95}`],
    "http_req_duration{scenario:stream}": [`p(95)<${p95}`],
    "http_req_duration{scenario:invocation}": [`p(95)<${p95}`],
    // A stream's head leaves before its first token, so its wait is short even when the answer is long.
    "http_req_waiting{scenario:stream}": [`p(95)<${p95}`],
    "iterations{scenario:plain}": ["count>0"],
    "iterations{scenario:stream}": ["count>0"],
    "iterations{scenario:invocation}": ["count>0"],
  },
};

const chat = (stream) =>
  JSON.stringify({
    model: endpoint,
    messages: [{ role: "user", content: "say something" }],
    max_tokens: maxTokens,
    stream,
  });

const answered = {
  "status is 200": (r) => r.status === 200,
  "names its instance": (r) => !!r.headers["X-Forebay-Instance"],
  "names its instance type": (r) => !!r.headers["X-Forebay-Instance-Type"],
};

export function plain() {
  const response = http.post(`${url}/v1/chat/completions`, chat(false), { headers: json });
  check(response, {
    ...answered,
    "has all its tokens": (r) => r.status === 200 && r.json("usage.completion_tokens") === maxTokens,
  });
}

export function stream() {
  const response = http.post(`${url}/v1/chat/completions`, chat(true), { headers: json });
  check(response, {
    ...answered,
    "is an event stream": (r) => (r.headers["Content-Type"] || "").startsWith("text/event-stream"),
    "has every token, in order": (r) => {
      const text = [...r.body.matchAll(/"content":"(t\d+ )"/g)].map((m) => m[1]).join("");
      return text === Array.from({ length: maxTokens }, (_, i) => `t${i} `).join("");
    },
    "ends with [DONE]": (r) => r.body.endsWith("data: [DONE]\n\n"),
  });
}

export function invocation() {
  const body = JSON.stringify({ inputs: "say something", max_tokens: maxTokens });
  const response = http.post(`${url}/endpoints/${endpoint}/invocations`, body, { headers: json });
  check(response, {
    ...answered,
    "reached the model": (r) => r.status === 200 && r.json("tokens") === maxTokens,
    "came from the type it names": (r) =>
      r.status === 200 && r.json("instance_type") === r.headers["X-Forebay-Instance-Type"],
  });
}
