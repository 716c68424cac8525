"use strict";

// Images from files, the clipboard and the camera.

/** Opens image files that are chosen, dropped or pasted. */
function openFiles(pad) {
  const places = pad.facts.draws ? [$("choose")] : [$("choose"), pad.canvas];
  for (const place of places) place.addEventListener("click", () => $("file").click());
  for (const input of [$("file"), $("photo")]) {
    input.addEventListener("change", () => {
      pad.open(input.files[0]);
      input.value = "";
    });
  }
  addEventListener("paste", (event) => pad.open(event.clipboardData.files[0]));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
  addEventListener("dragleave", () => document.body.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    pad.open(event.dataTransfer.files[0]);
  });
}

/**
 * Takes photographs: mobile devices have an app for it, which a file input opens; others get a
 * dialog with what their camera sees.
 */
class Camera {
  constructor(pad) {
    this.pad = pad;
    this.stream = null;
    $("camera").addEventListener("click", () => this.start());
    $("shoot").addEventListener("click", () => this.shoot());
    $("viewfinder").addEventListener("close", () => this.end());
    $("leave").addEventListener("click", () => $("viewfinder").close());
  }

  async start() {
    if (matchMedia("(pointer: coarse)").matches) return $("photo").click();
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({
        video: { facingMode: "environment" },
      });
    } catch {
      complain("no camera can be used here: allow it in the browser, or open an image file");
      return;
    }
    $("video").srcObject = this.stream;
    $("viewfinder").showModal();
  }

  shoot() {
    const video = $("video");
    const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    $("viewfinder").close();
    canvas.toBlob((photograph) => this.pad.open(photograph), "image/png");
  }

  end() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = $("video").srcObject = null;
  }
}
