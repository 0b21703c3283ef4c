// Photos with the answers of several methods: a table to sort and to filter.

const STEP = 100; // rows that are written at once
const MOST_COLUMNS = 6; // of methods, at the start
const SHOWN_TRUTHS = 2; // references that are shown at once
const methods = page.methods;
let order = { key: "name", down: false };
let limit = STEP;

// What a row is sorted by, and which way first: names upwards, the hardest photos first.
const KEYS = {
  name: (entry) => entry.name,
  truth: (entry) => entry.truth[0],
  total: (entry) => entry.total,
};

const chosen = () => (find("method").value === "all" ? methods.map((_, number) => number)
  : [Number(find("method").value)]);

function valueOf(entry, key) {
  return key in KEYS ? KEYS[key](entry) : entry.answers[key].score;
}

function matches(entry) {
  const words = find("words").value.trim().toLowerCase();
  const texts = [entry.name, ...entry.truth, ...chosen().map((number) => entry.answers[number].text)];
  return (!find("wrong").checked || chosen().some((number) => entry.answers[number].right === false))
    && (!find("differ").checked || new Set(entry.answers.map((answer) => answer.text)).size > 1)
    && (!words || texts.some((text) => text.toLowerCase().includes(words)));
}

function compared(one, other) {
  const [first, second] = [valueOf(one, order.key), valueOf(other, order.key)];
  const by = typeof first === "string" ? first.localeCompare(second, "en", { numeric: true }) : first - second;
  return order.down ? -by : by;
}

function sortBy(key) {
  order = { key, down: order.key === key ? !order.down : typeof key === "number" };
  fill();
}

function headCell(key, name, note) {
  const cell = make("th", { scope: "col" });
  const sorted = order.key === key;
  if (sorted) cell.setAttribute("aria-sort", order.down ? "descending" : "ascending");
  const arrow = make("span", {}, sorted ? (order.down ? " ▼" : " ▲") : "");
  arrow.setAttribute("aria-hidden", "true");
  cell.append(make("button", { type: "button", title: "sort by this column", onclick: () => {
    sortBy(key);
    [...find("head").querySelectorAll("th[aria-sort] button")].forEach((button) => button.focus());
  } }, name, arrow));
  // An interval stays on one line: the word joiner forbids a break behind the hyphen.
  if (note) cell.append(make("div", { className: "small soft" }, note.replaceAll(" - ", "\u00a0-\u2060\u00a0")));
  return cell;
}

function bodyCell(name, ...children) {
  const cell = make("td", {}, ...children);
  cell.dataset.name = name;
  return cell;
}

function answerCell(answer, method) {
  const mark = { true: ["right", "✓ "], false: ["wrong", "✗ "] }[answer.right] ?? ["", ""];
  const said = { true: "right: ", false: "wrong: " }[answer.right] ?? "";
  const sign = make("span", {}, mark[1]);
  sign.setAttribute("aria-hidden", "true");
  return bodyCell(method.name,
    make("div", { className: mark[0] }, sign, make("span", { className: "hidden" }, said), answer.text),
    make("div", { className: "small soft" }, answer.note));
}

/** One text, or a list of several; of many, the later ones unfold. */
function truthParts(texts) {
  if (texts.length === 1) return texts;
  const list = (part) => make("ul", {}, ...part.map((text) => make("li", {}, text)));
  const later = texts.slice(SHOWN_TRUTHS);
  return [list(texts.slice(0, SHOWN_TRUTHS)), ...(later.length === 0 ? [] : [
    make("details", {}, make("summary", {}, `${later.length} more`), list(later))])];
}

function rowOf(entry) {
  const photo = make("td", { className: "photo" },
    make("img", { src: record(entry.number).photo, alt: "" }));
  const name = bodyCell("photo", entry.name);
  name.className = "name";
  return make("tr", {}, photo, name, bodyCell(page.truth, ...truthParts(entry.truth)),
    ...chosen().map((number) => answerCell(entry.answers[number], methods[number])),
    bodyCell(page.total, entry.totalText));
}

function fill() {
  const found = entries.filter(matches).sort(compared);
  find("head").replaceChildren(make("th", { scope: "col", className: "photo" },
    make("span", { className: "hidden" }, "picture")),
  headCell("name", "photo"), headCell("truth", page.truth),
  ...chosen().map((number) => headCell(number, methods[number].name, methods[number].note)),
  headCell("total", page.total));
  find("rows").replaceChildren(...found.slice(0, limit).map(rowOf));
  const [table] = document.getElementsByTagName("table");
  table.parentElement.classList.remove("scrolls");
  table.parentElement.classList.toggle("scrolls", table.offsetWidth > table.parentElement.clientWidth);
  const shown = Math.min(limit, found.length);
  find("count").textContent = `${found.length.toLocaleString("en")} of ${entries.length.toLocaleString("en")} photos`
    + (shown < found.length ? `, the first ${shown} are shown` : "");
  find("more").hidden = shown === found.length;
}

function restart() {
  limit = STEP;
  fill();
}

const entries = page.entries.map((entry, number) => ({ ...entry, number }));
find("title").textContent = page.title;
find("caption").textContent = page.title;
find("lead").textContent = page.lead;
find("notes").textContent = page.notes;
find("wrong-label").hidden = !entries.some((entry) => entry.answers.some((answer) => "right" in answer));
find("differ-label").hidden = methods.length < 2;
fillSelect(find("method"), [["all", "all methods"], ...methods.map(({ name }, number) => [number, name])],
  methods.length > MOST_COLUMNS ? methods.length - 1 : "all");
find("more").onclick = () => { limit += STEP; fill(); };
find("words").oninput = restart;
for (const name of ["method", "wrong", "differ"]) find(name).onchange = () => {
  if (typeof order.key === "number" && !chosen().includes(order.key)) order = { key: "name", down: false };
  restart();
};
fill();
