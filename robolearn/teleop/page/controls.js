// Keys, sticks on the screen, gamepads and a tilted phone: all become one twist in the operator's frame
// (x away from the operator, y left, z up; then turns about these axes), each element in [-1, 1].

const KEYS = {
  w: [0, 1], s: [0, -1], a: [1, 1], d: [1, -1], r: [2, 1], f: [2, -1],
  j: [3, -1], l: [3, 1], i: [4, 1], k: [4, -1], q: [5, 1], e: [5, -1],
};
const COMMANDS = {
  " ": "gripper", enter: "start", 1: "success", 0: "failure", backspace: "discard", z: "undo", p: "pause", x: "stop",
  t: "takeover", y: "release", tab: "arm",
};
// Standard mapping of the Gamepad API: A, B, X, Y, ..., back, start, stick presses.
const BUTTONS = { 0: "gripper", 1: "failure", 2: "undo", 3: "success", 8: "discard", 9: "start", 10: "takeover", 11: "release" };
const CLUTCH = [4, 5];
const DEADBAND = 0.12;
const SLOW = 0.3;
const RESEND_MS = 16; // a wish counts for 50 ms at 20 Hz, so that motion ends within 100 ms of the last one
const FULL_TILT_DEG = 25;

export class Controls {
  constructor({ send, ask }) {
    this.send = send;
    this.ask = ask;
    this.held = new Set();
    this.sticks = new Map();
    this.pressed = new Set();
    this.level = null;
    this.tilt = null;
    this.speed = 1;
    this.engaged = false;
    this.inputAt = 0;
    this.listen();
    setInterval(() => this.tick(), RESEND_MS);
  }

  listen() {
    addEventListener("keydown", (event) => this.key(event, true));
    addEventListener("keyup", (event) => this.key(event, false));
    addEventListener("blur", () => this.letGo());
    addEventListener("pagehide", () => this.letGo());
    document.addEventListener("visibilitychange", () => document.hidden && this.letGo());
    for (const pad of document.querySelectorAll(".stick")) this.stick(pad);
    this.phone(document.getElementById("tilt"));
  }

  key(event, down) {
    if (event.target.matches("input:not([type=range])") || event.ctrlKey || event.metaKey || event.altKey) return;
    const name = event.key.toLowerCase();
    if (name in KEYS || name === "shift") {
      down ? this.held.add(name) : this.held.delete(name);
      this.input(event);
    } else if (down && !event.repeat && name in COMMANDS && !(name === "tab" && document.getElementById("arm").hidden)) {
      event.preventDefault();
      this.ask(COMMANDS[name]);
    }
  }

  stick(pad) {
    const knob = pad.querySelector("b");
    const axes = { x: pad.dataset.x, y: pad.dataset.y };
    const move = (event) => {
      const box = pad.getBoundingClientRect();
      const reach = { x: (box.width - 42) / 2, y: (box.height - 42) / 2 };
      let x = axes.x === undefined ? 0 : (event.clientX - box.left - box.width / 2) / reach.x;
      let y = (event.clientY - box.top - box.height / 2) / reach.y;
      const far = Math.max(1, Math.hypot(x, y));
      x /= far; y /= far;
      knob.style.transform = `translate(${x * reach.x}px, ${y * reach.y}px)`;
      const wish = [0, 0, 0, 0, 0, 0];
      if (axes.x !== undefined) wish[axes.x] = -x;
      wish[axes.y] = -y;
      this.sticks.set(pad, wish);
      this.input(event);
    };
    const end = (event) => {
      this.sticks.delete(pad);
      pad.classList.remove("live");
      knob.style.transform = "";
      this.input(event);
    };
    pad.addEventListener("pointerdown", (event) => {
      pad.setPointerCapture(event.pointerId);
      pad.classList.add("live");
      move(event);
    });
    pad.addEventListener("pointermove", (event) => pad.hasPointerCapture(event.pointerId) && move(event));
    pad.addEventListener("lostpointercapture", end);
  }

  phone(button) {
    if (!matchMedia("(pointer: coarse)").matches || !("DeviceOrientationEvent" in window)) return;
    button.hidden = false;
    if (!isSecureContext) {
      button.disabled = true;
      button.textContent = "Tilting needs https: start with --certificate";
      return;
    }
    addEventListener("deviceorientation", (event) => {
      if (event.beta === null) return;
      this.orientation = [event.beta, event.gamma];
      if (this.level) {
        const [beta, gamma] = [event.beta - this.level[0], event.gamma - this.level[1]];
        this.tilt = [clip(-beta / FULL_TILT_DEG), clip(-gamma / FULL_TILT_DEG), 0, 0, 0, 0];
        this.input(event);
      }
    });
    button.addEventListener("pointerdown", async (event) => {
      button.setPointerCapture(event.pointerId);
      if (DeviceOrientationEvent.requestPermission) await DeviceOrientationEvent.requestPermission();
      this.level = this.orientation ?? null;
    });
    button.addEventListener("lostpointercapture", (event) => {
      this.level = this.tilt = null;
      this.input(event);
    });
  }

  gamepad() {
    const pad = navigator.getGamepads?.().find((p) => p?.connected && p.mapping === "standard");
    document.getElementById("pad").textContent = pad ? "gamepad" : "no gamepad";
    if (!pad) {
      this.pressed.clear();
      return null;
    }
    pad.buttons.forEach((button, n) => {
      if (button.pressed && !this.pressed.has(n) && n in BUTTONS) this.ask(BUTTONS[n]);
      button.pressed ? this.pressed.add(n) : this.pressed.delete(n);
    });
    if (!CLUTCH.some((n) => pad.buttons[n]?.pressed)) return null;
    const axis = (n) => (Math.abs(pad.axes[n]) < DEADBAND ? 0 : pad.axes[n]);
    const cross = (plus, minus) => Number(pad.buttons[plus]?.pressed) - Number(pad.buttons[minus]?.pressed);
    return [-axis(1), -axis(0), -axis(3), cross(15, 14), cross(12, 13), -axis(2)];
  }

  twist() {
    const sum = [0, 0, 0, 0, 0, 0];
    for (const key of this.held) if (key in KEYS) sum[KEYS[key][0]] += KEYS[key][1];
    const pad = this.gamepad();
    for (const wish of [...this.sticks.values(), this.tilt, pad]) wish?.forEach((v, n) => (sum[n] += v));
    const speed = this.speed * (this.held.has("shift") ? SLOW : 1);
    const engaged = this.sticks.size > 0 || this.tilt !== null || pad !== null || sum.some((v) => v !== 0);
    return { twist: sum.map((v) => clip(v) * speed), engaged };
  }

  input(event) {
    this.inputAt = performance.timeOrigin + event.timeStamp;
    this.tick();
  }

  tick() {
    const { twist, engaged } = this.twist();
    if (!engaged && !this.engaged) return;
    this.engaged = engaged;
    const wish = { kind: "wish", twist, engaged };
    if (this.inputAt) wish.at = this.inputAt;
    this.inputAt = 0;
    this.send(wish);
  }

  letGo() {
    this.held.clear();
    this.sticks.clear();
    this.tilt = this.level = null;
    this.tick();
  }
}

function clip(value) {
  return Math.max(-1, Math.min(1, value));
}
