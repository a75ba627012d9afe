// The console's API: see console_api.h. Every function throws an Error with the server's own words.

async function answer(response) {
  const body = await response.json().catch(() => null);
  if (response.ok) return body;
  throw new Error(body?.error?.message ?? `the controller answered ${response.status}`);
}

export async function get(path, query = {}) {
  const words = new URLSearchParams(query).toString();
  return answer(await fetch(`/api/${path}${words && '?'}${words}`));
}

// Calls a unary method: call('PlanService/ApprovePlan', {id}).
export async function call(method, request) {
  return answer(await fetch(`/api/call/ballast.v1.${method}`, {
    method: 'POST',
    headers: {'Content-Type': 'application/json', 'X-Ballast-Console': '1'},
    body: JSON.stringify(request),
  }));
}

// The ratios of PackRatios.
export function unpackRatios(base64) {
  const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({length: bytes.length / 2}, (_, i) => view.getUint16(2 * i, true) / 1000);
}
