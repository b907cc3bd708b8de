// The page: reads api/state and api/events, draws them, and sends commands. What a run says is only ever text.
const $ = (id) => document.getElementById(id);
const POINTS = 1500;
const COLOURS = ["#4c78d8", "#e08a2e", "#2f9e6e", "#b05fc4", "#d1495b", "#1f9eb3", "#8a7a34", "#7d84ff"];
const ENDED = { solved: ["Solved", "good"], steps: ["Budget spent", "muted"], stopped: ["Stopped", "muted"] };
const BROKEN = "The run cannot be reached: it has ended, or its machine is away. Trying again …";
const IDLE = "Frames are drawn only while somebody watches.";
let state = null; // the newest snapshot
let report = null; // the newest update
let now = null; // the same; after a command, what it has changed since
let points = []; // updates, for the curves
let speed = 0; // env steps per second, smoothed
let heard = 0; // when the newest update came
let problem = ""; // why there is no connection
let marked = null; // number of the decision that is marked in the curves
let token = null; // for commands; in memory only
let [events, watching, drawing] = [null, null, null];

function el(tag, text = "", className = "", ...children) {
  const node = Object.assign(document.createElement(tag), { textContent: text, className });
  node.append(...children);
  return node;
}
const whole = (x) => Math.round(x).toLocaleString("en-US");
const percent = (x) => `${Math.round(100 * x)}%`;
const digits = (x) => (x === null || x === undefined ? "–" : String(Number(x.toPrecision(3))));
const millis = (s) => (s ? `${digits(1000 * s)} ms` : "–");
const shade = (i) => COLOURS[i % COLOURS.length];
const running = () => state.status === "running";

function duration(s) {
  if (s < 100) return `${Math.round(s)} s`;
  if (s < 6000) return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
}

// ---- the run, as the server tells it

async function ask(path, options) {
  const answer = await fetch(path, options);
  const data = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(data.error), { refused: true });
  return data;
}

function take(next) {
  if (state && !running()) return; // asked before the end, answered after it
  state = next;
  points = state.curves ?? points;
  report = state.report;
  const { env_steps, stages, published, applied } = state.summary;
  now = { ...report, stage: state.stage, env_steps, stages, timing: { ...report?.timing, published, applied } };
  speed ||= report?.timing.steps_per_s ?? 0;
  heard = Date.now();
  offer();
  renderStatus();
  renderNow();
  renderDecisions();
  renderWorkers();
  drawSoon();
}

function listen() {
  events = new EventSource("api/events");
  const on = (name, act) => events.addEventListener(name, (event) => state && act(JSON.parse(event.data)));
  const again = () => ask(`api/state?points=${POINTS}`).then(take).catch(lost);
  events.onopen = () => ((problem = ""), again());
  events.onerror = () => lost(new Error(), events.readyState === EventSource.CLOSED);
  on("report", add);
  on("decision", again);
  on("missed", again);
  on("workers", (rows) => ((state.workers = rows), renderWorkers()));
  on("end", (last) => (events.close(), take(last)));
}

function lost(error, over = true) {
  if (over) events?.close(); // else the browser tries again by itself
  if (state && !running()) return;
  problem = error.refused ? error.message : BROKEN;
  renderStatus();
  if (over && !error.refused) setTimeout(() => ask("api/session").then(listen, lost), 2000);
}

function add(update) {
  if (update.update <= (report?.update ?? 0)) return;
  now = report = update;
  heard = Date.now();
  speed = 0.9 * (speed || update.timing.steps_per_s) + 0.1 * update.timing.steps_per_s;
  const { timeline } = state.summary;
  if (timeline.at(-1)?.stage !== update.stage) timeline.push({ stage: update.stage, env_steps: update.env_steps });
  points.push(update);
  const half = points.length / 2; // every second point of the older half goes, the newest stay as they came
  if (half > POINTS) points = points.filter((_, i) => i > half || i % 2 === 0);
  renderNow();
  renderStatus();
  drawSoon();
}

// ---- what is shown

function renderStatus() {
  const silent = Math.round((Date.now() - heard) / 1000);
  const quiet = 10 + 3 * (report ? report.timing.collect_s + report.timing.learn_s : 20); // seconds; updates may be long
  let [text, kind] = ["Running", "good"];
  if (state && !running()) [text, kind] = ENDED[state.status] ?? ["Failed", "bad"];
  else if (problem) [text, kind] = ["No connection", "bad"];
  else if (!state) [text, kind] = ["Connecting", "muted"];
  else if (state.held) [text, kind] = ["Decisions on hold", "warn"];
  else if (silent >= 10) [text, kind] = [`No update for ${duration(silent)}`, "warn"];
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").className = `pill ${kind}`;
  const notices = (state?.warnings ?? []).map((warning) => [warning, "warn"]);
  if (problem) notices.unshift([problem, "bad"]);
  if (state?.outcome) notices.unshift([`The run has ended: ${state.outcome}. The page stays as it was then.`, kind]);
  if ($("notices").textContent !== notices.map(([words]) => words).join(""))
    $("notices").replaceChildren(...notices.map(([words, tone]) => el("p", words, `notice ${tone}`)));
}

function renderNow() {
  const { run, fixed } = state;
  const left = Math.max(0, run.total_steps - now.env_steps) / speed;
  const ratio = (stage, value) => (run.staged ? digits(value) + (stage in fixed ? " (fixed)" : "") : "–");
  const figures = {
    Stage: now.stage,
    "Env steps": whole(now.env_steps),
    "Steps per second": speed ? whole(speed) : "–",
    "Mean return": digits(now.episode_return),
    "Mixing ratio": ratio(now.stage, now.stages.find((row) => row.name === now.stage)?.mixing_ratio),
    "Time left, at most": running() && speed ? duration(left) : "–",
    "Directives taken by all": `${now.timing.applied} of ${now.timing.published}`,
  };
  const pairs = Object.entries(figures).map(([name, value]) => el("div", "", "", el("dt", name), el("dd", value)));
  $("figures").replaceChildren(...pairs);
  const done = Math.min(1, now.env_steps / run.total_steps);
  $("budget").firstChild.style.width = percent(done);
  $("budget").ariaValueNow = Math.round(100 * done);
  const early = run.solve_rate ? `; ends early once the last stage reaches ${percent(run.solve_rate)} success` : "";
  $("budget-text").textContent = `${percent(done)} of at most ${whole(run.total_steps)} env steps${early}`;
  const heads = [
    "Stage",
    "Success",
    "#Outcomes",
    "#Episodes",
    "#Share of draws",
    "#Mixing ratio",
    "Missing to advance",
  ];
  const rows = now.stages.map((row) => {
    const current = row.name === now.stage;
    const limit = row.measure === "success" ? row.threshold : null;
    const rate = el("td", row.outcomes ? percent(row.success_rate) : "–", "", bar(row.success_rate, limit));
    const counts = [row.outcomes, whole(row.episodes), percent(row.share), ratio(row.name, row.mixing_ratio)];
    const lacks =
      current && run.staged ? [row.missing || (row === now.stages.at(-1) ? "nothing: solved" : "nothing")] : [];
    if (row.waiting) lacks.push(`${row.waiting} outcomes wait for env ${row.waiting_for}`);
    const missing = el("td", lacks.join("; "), "missing");
    return [current ? "current" : "", row.name, rate, ...counts, missing];
  });
  table($("stages"), heads, rows);
}

function bar(share, limit) {
  const whole = el("span", "", "bar", el("i"));
  whole.firstChild.style.width = percent(share);
  if (limit === null) return whole;
  whole.append(el("b"));
  whole.title = `threshold ${percent(limit)}`;
  whole.lastChild.style.left = percent(limit);
  return whole;
}

// A head that begins with # is one of numbers; a row begins with its class and its name.
function table(node, heads, rows) {
  const kinds = heads.map((head) => (head[0] === "#" ? "n" : ""));
  const cell = (value, i) => (value instanceof Node ? value : el("td", value, kinds[i + 1]));
  const head = el("tr", "", "", ...heads.map((name, i) => el("th", name.replace("#", ""), kinds[i])));
  const body = rows.map(([kind, name, ...values]) => el("tr", "", kind, el("th", name), ...values.map(cell)));
  node.replaceChildren(el("thead", "", "", head), el("tbody", "", "", ...body));
}

function renderDecisions() {
  const list = $("decision-list");
  const focused = list.contains(document.activeElement) && document.activeElement.dataset.number;
  const rows = state.decisions.map(({ number, title, facts }) => {
    const button = el("button", "", "", el("strong", title), el("small", facts));
    button.dataset.number = number;
    button.ariaPressed = String(number === marked);
    button.onclick = () => {
      marked = marked === number ? null : number;
      renderDecisions();
      drawSoon();
    };
    return el("li", "", "", button);
  });
  list.replaceChildren(...rows.reverse());
  if (focused) list.querySelector(`[data-number="${focused}"]`)?.focus();
  $("decisions-empty").hidden = rows.length > 0;
  $("explain").textContent = state.explain;
}

function renderWorkers() {
  const heads = [
    "Worker",
    "State",
    "#Process",
    "#Envs",
    "#Step p50",
    "#Step p99",
    "#Time waiting",
    "#Update taken",
    "#Restarts",
  ];
  const rows = state.workers.map((row) => {
    let [text, kind] = row.straggler ? ["slow", "warn"] : ["up", "good"];
    if (!row.ready) [text, kind] = ["lost, restarting", "bad"];
    if (!running()) [text, kind] = ["run ended", "muted"];
    const times = [millis(row.step_p50_s), millis(row.step_p99_s), percent(row.wait_share)];
    const versions = `${row.version} of ${row.newest_version}`;
    const restarts = el("td", row.restarts, row.restarts ? "n bad" : "n");
    return ["", row.worker, el("td", text, kind), row.pid ?? "this one", row.envs, ...times, versions, restarts];
  });
  table($("worker-table"), heads, rows);
  const losses = state.workers.flatMap((row) => row.losses.map((loss) => el("li", `Worker ${row.worker} ${loss}`)));
  $("losses").replaceChildren(...losses.reverse());
}

// ---- curves

const drawSoon = () => (drawing ??= setTimeout(draw, document.hidden ? 2000 : 300));
const literally = (name) => name.replaceAll("&", "&amp;").replaceAll("<", "&lt;"); // plotly reads some tags

function draw() {
  drawing = null;
  $("plot-empty").hidden = points.length > 0;
  if (!points.length || !window.Plotly) return;
  const x = points.map((point) => point.env_steps);
  const mode = x.length > 1 ? "lines" : "markers";
  const trace = (name, tone, of, hover = ".3~g", shape = "linear", showlegend = false) => {
    const line = { color: shade(tone), width: 1.6, shape };
    return { x, y: points.map(of), name, mode, line, hovertemplate: `%{y:${hover}}`, showlegend };
  };
  const perStage = (of, legend) =>
    now.stages.map(({ name }, i) => {
      const column = (point) => of(point.stages.find((row) => row.name === name));
      return trace(literally(name), i, column, ".0%", "linear", legend);
    });
  const success = perStage((row) => (row?.outcomes ? row.success_rate : null), true);
  const drawn = state.run.staged
    ? ["mixing ratio", [trace("mixing ratio", 6, (point) => point.mixing_ratio, ".2f", "hv")]]
    : ["share of draws", perStage((row) => row?.share ?? null, false)];
  const panels = [
    ["success of the newest outcomes", success],
    drawn,
    ["mean return", [trace("return", 0, (point) => point.episode_return)]],
    ["entropy of the policy, nats", [trace("entropy", 3, (point) => point.entropy)]],
    ["KL divergence of the update", [trace("KL", 1, (point) => point.approx_kl)]],
    ["explained variance", [trace("explained variance", 2, (point) => point.explained_variance)]],
    ["env steps per second", [trace("steps/s", 5, (point) => point.timing.steps_per_s, ",.0f")]],
  ];
  Plotly.react($("plot"), ...figure(panels), { displayModeBar: false, responsive: true });
}

function figure(panels) {
  const { borderTopColor: line, backgroundColor: card, color: text } = getComputedStyle($("curves"));
  const { color: muted } = getComputedStyle($("subtitle"));
  const quiet = { gridcolor: line, zeroline: false, fixedrange: true };
  const layout = {
    height: 900,
    margin: { l: 48, r: 8, t: 8, b: 40 },
    font: { family: "system-ui, sans-serif", size: 12, color: muted },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    hovermode: "x",
    hoversubplots: "axis",
    hoverlabel: { bgcolor: card, bordercolor: line, font: { color: text } },
    legend: { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom" },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    uirevision: "a zoom stays",
    xaxis: { ...quiet, fixedrange: false, title: { text: "env steps" }, anchor: `y${panels.length}` },
    shapes: shapes(text),
    annotations: [],
  };
  const unit = 1 / (panels.length + 1); // the first one is twice as high
  const traces = panels.flatMap(([name, lines], i) => {
    const [top, bottom] = [1 - unit * (i ? i + 1 : 0), 1 - unit * (i + 2)];
    const share = i ? {} : { range: [-0.04, 1.04], tickformat: ".0%" };
    layout[`yaxis${i + 1}`] = { ...quiet, domain: [Math.max(0, bottom), top - 0.03], nticks: i ? 3 : 5, ...share };
    const place = { xref: "paper", yref: "paper", x: 0, y: top - 0.03, xanchor: "left", yanchor: "bottom" };
    layout.annotations.push({ text: name, showarrow: false, ...place });
    return lines.map((one) => ({ ...one, yaxis: `y${i + 1}` }));
  });
  return [traces, layout];
}

// The stages behind the success curves, and the decision that is marked.
function shapes(ink) {
  const last = points.at(-1).env_steps;
  const found = state.summary.timeline.map(({ stage, env_steps }, i, all) => {
    const fillcolor = shade(now.stages.findIndex((row) => row.name === stage));
    const across = { xref: "x", x0: env_steps, x1: all[i + 1]?.env_steps ?? last };
    const looks = { layer: "below", line: { width: 0 }, fillcolor, opacity: 0.13 };
    return { type: "rect", ...across, yref: "y domain", y0: 0, y1: 1, ...looks };
  });
  const decision = state.decisions.find(({ number }) => number === marked);
  if (!decision) return found;
  const x = points.find((point) => point.episodes >= decision.total)?.env_steps ?? last;
  const line = { color: ink, width: 1.5, dash: "dot" };
  return [...found, { type: "line", xref: "x", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line }];
}

// ---- commands

function offer() {
  const { run, progress } = state;
  $("title").textContent = run.title;
  document.title = `${run.title} · aio-vecenv`;
  $("subtitle").textContent = run.subtitle;
  const stages = run.staged ? progress.map((row) => row.stage) : [];
  const choices = { stage: stages, "mix-stage": stages, env: [...Array(run.num_envs).keys()] };
  for (const [id, values] of Object.entries(choices))
    if ($(id).textContent !== values.join("")) $(id).replaceChildren(...values.map((value) => el("option", value)));
  for (const line of document.querySelectorAll(".staged")) line.hidden = !run.staged;
  $("command-fields").disabled = $("watch-button").disabled = !running();
  $("command-note").textContent = run.notes.join(" ");
}

async function command(event) {
  event.preventDefault();
  const { name } = event.submitter;
  const order = { by: $("by").value, why: $("why").value };
  if (name === "set_stage") order.stage = $("stage").value;
  const ratio = name === "free" ? null : $("ratio").value && $("ratio").valueAsNumber;
  if (name === "free" || name === "set_mixing_ratio") Object.assign(order, { stage: $("mix-stage").value, ratio });
  if (name === "stop" && !(await sure())) return;
  localStorage.setItem("aio-vecenv-who", order.by);
  tell("Sent. Waiting for the answer …", "muted");
  try {
    token ??= (await ask("api/session")).command_token;
    const headers = { "content-type": "application/json", "x-command-token": token };
    const path = `api/commands/${name === "free" ? "set_mixing_ratio" : name}`;
    const { done, receipt } = await ask(path, { method: "POST", headers, body: JSON.stringify(order) });
    const taken = receipt ? `: taken by ${receipt.taken} of ${receipt.workers} workers` : "";
    tell(`Done: ${done}${taken}.`, receipt?.pending.length ? "warn" : "good");
    $("why").value = "";
  } catch (error) {
    token = null;
    tell(`Refused: ${error.message}`, "bad");
  }
}

function tell(text, kind) {
  $("answer").textContent = text;
  $("answer").className = kind;
}

function sure() {
  $("confirm").returnValue = "no";
  $("confirm").showModal();
  return new Promise((done) => ($("confirm").onclose = () => done($("confirm").returnValue === "yes")));
}

// ---- watching an env

function watch(env, text = env === null ? IDLE : "Waiting for a frame …") {
  watching?.close();
  watching = env === null ? null : new EventSource(`api/events?watch=${env}`);
  $("watch-button").textContent = watching ? "Stop watching" : "Watch";
  $("watch-text").textContent = text;
  $("frame").hidden = true;
  watching?.addEventListener("refused", (event) => watch(null, JSON.parse(event.data)));
  watching?.addEventListener("frame", (event) => {
    const { png, text, delay_s } = JSON.parse(event.data);
    Object.assign($("frame"), { src: `data:image/png;base64,${png}`, alt: `Env ${env}: ${text}`, hidden: false });
    $("watch-text").textContent = `${text} · ${Math.round(1000 * delay_s)} ms old`;
  });
}

// ---- the page itself

function start() {
  $("by").value = localStorage.getItem("aio-vecenv-who") ?? "";
  $("command-form").onsubmit = command;
  $("watch-button").onclick = () => watch(watching ? null : $("env").value);
  $("env").onchange = () => watching && watch($("env").value);
  matchMedia("(prefers-color-scheme: dark)").onchange = drawSoon;
  document.head.append(Object.assign(el("script"), { src: "static/plotly.js", onload: drawSoon }));
  setInterval(renderStatus, 1000);
  listen();
}

// The link's token has been traded for a cookie by now: on without it, so that it leaves the address and the history.
if (new URLSearchParams(location.search).has("token")) location.replace(location.pathname);
else start();
