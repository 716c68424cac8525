// The chosen optimizer of a track: its curves, its trials, and how to repeat them.

function made(name, content, attributes = {}) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...(Array.isArray(content) ? content : [content]));
  return element;
}

// Returns the [class, optimizer] of what is drawn: the reference, the chosen one, the one shown.
function rolesOf(track, shown, pinned) {
  const reference = track.optimizers.find((one) => one.name === track.reference);
  const roles = [];
  if (reference && reference !== shown && reference !== pinned) roles.push(["reference", reference]);
  if (pinned !== shown) roles.push(["pinned", pinned]);
  roles.push(["shown", shown]);
  return roles;
}

function makeLegend(roles) {
  const marks = { reference: "\u2504 ", pinned: "\u2501 ", shown: "\u2501 " };
  const entries = [...roles].reverse().map(([role, one]) => made("span", marks[role] + one.name, { class: role }));
  return made("div", entries, { class: "legend" });
}

function makeCommand(one) {
  const code = made("pre", one.command);
  const button = made("button", "Copy", { type: "button", class: "copy" });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(one.command);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected: copy it";
    }
  });
  return [code, button];
}

function makeReference(one) {
  const parts = one.reference.map(([text, link]) =>
    link ? made("a", text, { href: link, rel: "noreferrer" }) : text);
  return made("p", [made("span", "Reference: ", { class: "label" }), ...parts]);
}

// Returns the table of the best of 1, 2, 4, ... trials.
function makeExpected(one) {
  const counts = one.expected.map(([count]) => made("td", String(count)));
  const values = one.expected.map(([, value]) => made("td", (100 * value).toFixed(2)));
  return made("table", made("tbody", [
    made("tr", [made("th", "trials"), ...counts]),
    made("tr", [made("th", "best, %"), ...values]),
  ]));
}

// Fills the panel with an optimizer; `pinned` is the chosen one, which may be another.
function fillPanel(panel, track, shown, pinned) {
  const roles = rolesOf(track, shown, pinned);
  const tuned = shown.names.map((name, at) => `${name} ${format(shown.trials[shown.best][2 + at])}`);
  const charts = made("div", []);
  const draw = (name) => charts.replaceChildren(drawTrials(roles, name));
  const choice = made("select", shown.names.map((name) => made("option", name, { value: name })), { "aria-label": "Hyperparameter" });
  choice.addEventListener("change", () => draw(choice.value));
  const parts = [
    made("h3", shown.name),
    made("p", `${shown.summary}.`),
    made("p", [made("span", "Tuned: ", { class: "label" }), tuned.join(", ") || "nothing"]),
    makeLegend(roles),
    made("h4", "Training loss, nats"),
    drawCurves(track, roles),
  ];
  if (shown.names.length) {
    const title = made("h4", "Held-out error, % (crosses: diverged) ");
    if (shown.names.length > 1) title.append(choice);
    parts.push(title, charts);
    draw(shown.names[0]);
  }
  parts.push(made("h4", "Expected best accuracy on held-out images"), makeExpected(shown));
  parts.push(made("h4", "To repeat it"), ...makeCommand(shown), makeReference(shown));
  panel.replaceChildren(...parts);
}
