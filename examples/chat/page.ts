/** page is a chat for a browser: /chat/ROOM?name=NAME. */
export const page = `<!doctype html>
<title>chat</title>
<style>body { font: 16px system-ui; max-width: 40em; margin: 2em auto } input { width: 100%; font: inherit }</style>
<div id="lines"></div>
<form><input id="text" placeholder="say something" autofocus autocomplete="off"></form>
<script>
const room = location.pathname.split("/").pop();
const name = new URLSearchParams(location.search).get("name") ?? "somebody";
const ws = new WebSocket("ws://" + location.host + "/agents/room/" + room + "?name=" + encodeURIComponent(name));
ws.onmessage = ({ data }) => {
  const { from, text } = JSON.parse(data);
  const line = document.createElement("p");
  line.textContent = from + ": " + text;
  document.getElementById("lines").append(line);
};
document.forms[0].onsubmit = (event) => {
  event.preventDefault();
  const input = document.getElementById("text");
  ws.send(input.value);
  input.value = "";
};
</script>`;
