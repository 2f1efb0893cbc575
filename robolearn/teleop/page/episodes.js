// The list of episodes, and looking at one again.

const $ = (id) => document.getElementById(id);

export class Episodes {
  constructor(url) {
    this.url = url;
    this.rate = 20;
    this.camera = false;
    this.shown = null;
    $("replayplay").addEventListener("click", () => this.play(!this.playing));
    $("replaystep").addEventListener("input", (event) => {
      this.play(false);
      this.show(Number(event.target.value));
    });
    $("replay").addEventListener("close", () => this.play(false));
  }

  list(cards, { rate, camera }) {
    this.rate = rate;
    this.camera = camera;
    const won = cards.filter((card) => card.success).length;
    $("counts").textContent = cards.length ? `${cards.length} kept, ${won} solved` : "";
    $("episodes").replaceChildren(...cards.toReversed().map((card) => this.card(card)));
  }

  card(card) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.className = `episode ${card.success ? "success" : "failure"}`;
    button.dataset.number = card.number;
    const picture = document.createElement(this.camera ? "img" : "span");
    picture.className = "blank";
    if (this.camera) {
      picture.alt = "";
      picture.loading = "lazy";
      picture.src = this.url(`episodes/${card.number}/${Math.floor(card.length * 0.8)}.jpg`);
    }
    const mark = document.createElement("mark");
    mark.textContent = card.outcome;
    const line = document.createElement("div");
    for (const text of [`#${card.number}`, `${(card.length / this.rate).toFixed(1)} s`]) {
      const span = document.createElement("span");
      span.textContent = text;
      line.append(span);
    }
    button.append(picture, mark, line);
    button.addEventListener("click", () => this.open(card.number));
    item.append(button);
    return item;
  }

  async open(number) {
    const answer = await fetch(this.url(`episodes/${number}.json`));
    if (!answer.ok) return;
    this.shown = await answer.json();
    const facts = this.shown;
    $("replaytitle").textContent = `Episode ${facts.number}: ${facts.outcome}`;
    $("replaystep").max = facts.length - 1;
    const words = [`${facts.length} steps`, `initial state ${facts.seed}`];
    if (facts.operator) words.push(`by ${facts.operator}`);
    if (facts.intervention_steps !== undefined) words.push(`${facts.intervention_steps} steps by a person`);
    if (facts.replay_success !== undefined) words.push(facts.replay_success ? "succeeds again when replayed" : "did not succeed when replayed");
    if (facts.timing) words.push(`${facts.timing.rate_hz.toFixed(2)} Hz, jitter p95 ${facts.timing.jitter_p95_ms.toFixed(1)} ms, ${facts.timing.dropped} dropped`);
    if (facts.notes) words.push(`“${facts.notes}”`);
    $("replayfacts").textContent = words.join(" · ");
    $("replayframe").hidden = !facts.camera;
    $("replay").showModal();
    this.show(0);
    this.play(true);
  }

  play(on) {
    this.playing = on;
    $("replayplay").textContent = on ? "Pause" : "Play";
    clearInterval(this.timer);
    if (!on) return;
    let step = Number($("replaystep").value);
    this.timer = setInterval(() => {
      step = step + 1 >= this.shown.length ? 0 : step + 1;
      this.show(step);
    }, 1000 / this.rate);
  }

  show(step) {
    const facts = this.shown;
    $("replaystep").value = step;
    $("replaytime").textContent = `${(step / this.rate).toFixed(2)} s / ${(facts.length / this.rate).toFixed(2)} s`;
    const frame = $("replayframe");
    // The next frame is asked for once the last one is there, so that a slow line skips frames and does not queue them.
    if (facts.camera && (frame.complete || !frame.src)) frame.src = this.url(`episodes/${facts.number}/${step}.jpg`);
    this.draw(step);
  }

  // The hand's path, from above (left) and from the side (right); where a person was in control it is drawn in amber.
  draw(step) {
    const canvas = $("replaypath"), pen = canvas.getContext("2d"), { path, human, length } = this.shown;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (!path.length) return;
    const axes = [[1, 0, "from above"], [1, 2, "from the front"]];
    axes.forEach(([across, along, title], row) => {
      const top = row * (canvas.height / 2), height = canvas.height / 2, width = canvas.width;
      const span = (n) => [Math.min(...path.map((p) => p[n])), Math.max(...path.map((p) => p[n]))];
      const [u, v] = [span(across), span(along)];
      const scale = Math.min((width - 60) / Math.max(u[1] - u[0], 0.05), (height - 64) / Math.max(v[1] - v[0], 0.05));
      const at = (p) => [width / 2 + (p[across] - (u[0] + u[1]) / 2) * scale, top + height / 2 + 8 + (along === 2 ? -1 : 1) * (p[along] - (v[0] + v[1]) / 2) * scale];
      pen.fillStyle = "#8d98a7";
      pen.font = "13px system-ui, sans-serif";
      pen.fillText(title, 14, top + 22);
      pen.lineWidth = 2.5;
      pen.lineCap = "round";
      for (let n = 1; n < path.length; n++) {
        pen.strokeStyle = human[n] === 0 ? "#55627a" : human.includes(0) ? "#f3b94f" : "#3fd0ba";
        pen.beginPath();
        pen.moveTo(...at(path[n - 1]));
        pen.lineTo(...at(path[n]));
        pen.stroke();
      }
      const here = path[Math.round((step / Math.max(length - 1, 1)) * (path.length - 1))];
      pen.fillStyle = "#e9edf2";
      pen.beginPath();
      pen.arc(...at(here), 6, 0, 7);
      pen.fill();
    });
  }
}
