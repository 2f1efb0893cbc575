// Connection, live pictures, status and buttons.

import { Controls } from "./controls.js";
import { Episodes } from "./episodes.js";

const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token");
const url = (path) => (token ? `${path}?token=${encodeURIComponent(token)}` : path);
const WORDS = {
  idle: "Ready", recording: "Recording", paused: "Paused", stopped: "Label this episode", discarded: "Discarded",
  lost: "Connection lost, nothing moves", connecting: "Connecting",
};
const ALLOWED = {
  idle: ["start", "undo"], recording: ["pause", "stop", "success", "failure", "discard", "rerecord"],
  paused: ["pause", "stop", "success", "failure", "discard", "rerecord"], stopped: ["success", "failure", "discard", "rerecord"],
  discarded: ["start", "undo"],
};
const RECORDING_COMMANDS = ["start", "pause", "stop", "success", "failure", "discard", "rerecord", "undo"];
const PING_MS = 500;

const episodes = new Episodes(url);
let socket = null, roundTrip = 0, status = null, shownMessage = 0, swapped = false, arrived = [], lastPicture = {};

function send(message) {
  // A wish that has to wait for the line is worthless when it arrives: the next one comes in 16 ms.
  if (socket?.readyState !== WebSocket.OPEN || (message.kind === "wish" && socket.bufferedAmount > 4096)) return;
  if (message.kind === "wish") message.rtt = roundTrip;
  socket.send(JSON.stringify(message));
}

function ask(command) {
  const label = command === "success" || command === "failure";
  send({ kind: "ask", command, notes: label ? $("notes").value : "" });
  if (label) $("notes").value = "";
}

function connect() {
  socket = new WebSocket(`${location.origin.replace("http", "ws")}/${url("ws")}`);
  socket.binaryType = "arraybuffer";
  const ping = setInterval(() => send({ kind: "ping", at: performance.now() }), PING_MS);
  socket.onmessage = ({ data }) => (data instanceof ArrayBuffer ? picture(data) : read(JSON.parse(data)));
  socket.onclose = () => {
    clearInterval(ping);
    document.body.dataset.state = "lost";
    $("state").textContent = WORDS.lost;
    setTimeout(connect, 1000);
  };
}

async function picture(data) {
  const head = new DataView(data), view = head.getUint8(0), number = head.getUint32(1);
  const shown = () => send({ kind: "seen", view });
  const bitmap = await createImageBitmap(new Blob([new Uint8Array(data, 5)], { type: "image/jpeg" }));
  if (number < (lastPicture[view] ?? 0) && number > 1) return shown();
  lastPicture[view] = number;
  const large = (view === 0) !== swapped;
  const canvas = $(large ? "view" : "inset");
  if (canvas.width !== bitmap.width) [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  canvas.hidden = false;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  if (large) arrived.push(performance.now());
  requestAnimationFrame(shown);
}

function read(message) {
  if (message.kind === "pong") roundTrip = performance.now() - message.at;
  else if (message.kind === "refused") say({ level: "bad", text: message.text });
  else if (message.kind === "status") show(message);
}

function show(now) {
  status = now;
  document.body.dataset.state = now.state;
  const time = `${Math.floor(now.seconds / 60)}:${(now.seconds % 60).toFixed(1).padStart(4, "0")}`;
  const solved = now.ended && now.solved && now.state === "idle" ? "Solved. Start the next one" : WORDS[now.state];
  $("state").textContent = solved;
  $("task").textContent = now.task;
  $("timer").hidden = !["recording", "paused", "stopped"].includes(now.state);
  $("timer").querySelector("b").textContent = `${time}  ·  ${now.step} steps`;
  $("driver").hidden = !now.policy;
  $("driver").textContent = now.human ? "You are in control" : "The policy drives";
  $("driver").classList.toggle("human", now.human);
  $("watch").hidden = !now.policy;
  $("interventions").textContent = now.step ? `${now.interventions} of ${now.step} steps by you` : "";
  $("device").textContent = now.device || "";
  $("arm").hidden = now.arms < 2;
  $("arm").firstChild.textContent = `Arm: ${now.arm}`;
  $("blind").hidden = now.views.length > 0;
  $("takecontrol").hidden = now.control;
  $("pauseword").textContent = now.state === "paused" ? "Go on" : "Pause";
  for (const button of document.querySelectorAll("[data-command]")) {
    const command = button.dataset.command;
    button.disabled = !now.control || (RECORDING_COMMANDS.includes(command) && !ALLOWED[now.state].includes(command));
  }
  health(now);
  for (const message of now.messages) {
    if (message.number > shownMessage) {
      // What was said before this page was opened is no news.
      if (shownMessage || message.number === now.messages.at(-1).number) say(message);
      shownMessage = message.number;
    }
  }
  if (now.episodes) episodes.list(now.episodes, { rate: now.rate_hz, camera: now.stored_cameras.length > 0 });
}

function health(now) {
  const set = (id, text, level = "") => {
    $(id).textContent = text;
    $(id).className = level;
  };
  const rate = now.kept_rate_hz || now.rate_hz;
  set("rate", `${rate.toFixed(1)} Hz`, Math.abs(rate / now.rate_hz - 1) > 0.05 ? "warn" : "");
  const jitter = now.state === "recording" ? now.jitter_p95_ms : now.late_p95_ms;
  set("jitter", `${jitter.toFixed(1)} ms`, jitter > 500 / now.rate_hz ? "warn" : "");
  set("latency", now.latency_p95_ms === null ? "–" : `${now.latency_p95_ms.toFixed(0)} ms`, now.latency_p95_ms > 100 ? "warn" : "");
  set("dropped", String(now.dropped), now.dropped > 0 ? "alarm" : "");
  const written = now.pending ? `saving ${now.pending}` : now.step ? `${now.durable}/${now.step}` : "all";
  set("durable", written, now.step - now.durable > now.rate_hz ? "warn" : "");
  const since = performance.now() - 2000;
  arrived = arrived.filter((at) => at > since);
  set("fps", now.views.length ? `${(arrived.length / 2).toFixed(0)} fps` : "–");
}

function say({ level, text }) {
  const line = document.createElement("li");
  line.className = level;
  line.textContent = text;
  $("messages").append(line);
  while ($("messages").children.length > 3) $("messages").firstChild.remove();
  setTimeout(() => line.classList.add("old"), level === "bad" ? 9000 : 4000);
  setTimeout(() => line.remove(), level === "bad" ? 9600 : 4600);
}

const controls = new Controls({ send, ask });
for (const button of document.querySelectorAll("[data-command]")) {
  button.addEventListener("click", () => {
    ask(button.dataset.command);
    button.blur(); // or the space bar would press it again
  });
}
$("takecontrol").addEventListener("click", () => send({ kind: "control" }));
$("inset").addEventListener("click", () => {
  swapped = !swapped;
  send({ kind: "look", view: swapped ? 1 : 0 });
});
$("notes").addEventListener("keydown", (event) => ["Enter", "Escape"].includes(event.key) && event.target.blur());
$("speed").addEventListener("input", (event) => {
  controls.speed = event.target.value / 100;
  $("speedvalue").textContent = `${event.target.value} %`;
});
$("speed").addEventListener("change", (event) => event.target.blur());
connect();
