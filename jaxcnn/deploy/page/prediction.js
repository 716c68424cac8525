"use strict";

// The prediction: the most probable class, all probabilities, and what the network sees.

class Prediction {
  constructor(model) {
    this.model = model;
    this.nothing = $("confidence").textContent;
    [$("seen").height, $("seen").width] = model.shape;
    this.blank();
    model.watch(() => (model.pass ? this.show() : this.blank()));
  }

  show() {
    const { model, model: { data: { classes } } } = this;
    const shares = model.probabilities;
    const [first, second] = largest(shares, 2);
    $("prediction").textContent = classes[first];
    $("prediction").classList.remove("nothing");
    const then = second === undefined ? "" : `; then ${classes[second]} with ${percent(shares[second])}`;
    $("confidence").textContent = percent(shares[first]) + then;
    [...$("rows").rows].forEach((row, i) => {
      row.classList.toggle("first", i === first);
      row.querySelector("i").style.transform = `scaleX(${shares[i]})`;
      row.lastElementChild.textContent = percent(shares[i]);
    });
    paintImage($("seen"), model.image, model.shape);
    const spoken = [first, second].filter((i) => i !== undefined)
      .map((i) => `${classes[i]}, ${Math.round(100 * shares[i])} percent`);
    say({ prediction: `Prediction: ${spoken.join("; then ")}.` });
  }

  blank() {
    $("prediction").textContent = "–";
    $("prediction").classList.add("nothing");
    const reason = $("problem").hidden ? this.nothing : "no prediction";
    $("confidence").textContent = reason;
    for (const row of $("rows").rows) {
      row.classList.remove("first");
      row.querySelector("i").style.transform = "";
      row.lastElementChild.textContent = "–";
    }
    wipe($("seen"));
    say({ prediction: `${reason}.` });
  }
}
