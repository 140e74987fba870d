// Talks to the server: sends films and opinions, waits where it is busy, asks for the token where it needs one.

const KEY = "xray-token";
let asking = null;

export class Refused extends Error {
  constructor(problem) {
    super(problem.detail || problem.title || "the server refused");
    this.code = problem.code || "failed";
  }
}

function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = document.querySelector("#login");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, document.querySelector("#token").value);
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function call(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const answer = await fetch(path, { ...options, headers });
    if (answer.status === 401) {
      await askForToken();
    } else if (answer.status === 429 || answer.status === 503) {
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    } else if (!answer.ok) {
      throw new Refused(await answer.json().catch(() => ({})));
    } else {
      return answer;
    }
  }
}

function form(file, fields = {}) {
  const body = new FormData();
  body.append("file", file, "film"); // the name may name a patient, and nobody needs it
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return { method: "POST", body };
}

export async function model() {
  return (await (await call("/v1/models")).json()).models[0];
}

export async function predict(file, prevalence) {
  return (await call("/v1/predict", form(file, prevalence ? { prevalence } : {}))).json();
}

export async function image(file) {
  const answer = await call("/v1/image", form(file));
  return {
    bitmap: await createImageBitmap(await answer.blob()),
    width: Number(answer.headers.get("X-Film-Width")),
    height: Number(answer.headers.get("X-Film-Height")),
  };
}

export async function heatMap(file) {
  const answer = await call("/v1/heatmap", form(file));
  if (answer.headers.get("Content-Type").startsWith("image/")) {
    return { bitmap: await createImageBitmap(await answer.blob()) };
  }
  return answer.json();
}

export async function sendOpinion(values) {
  const headers = { "Content-Type": "application/json" };
  return (await call("/v1/feedback", { method: "POST", headers, body: JSON.stringify(values) })).json();
}
