// One call with a service config: client.js TARGET METHOD HEX CONFIG_FILE SECONDS.
// It prints the name of the status. NODE_PATH has the folder of @grpc/grpc-js.
"use strict";

const fs = require("fs");
const grpc = require("@grpc/grpc-js");

const [target, method, hex, config, seconds] = process.argv.slice(2);
const client = new grpc.Client(target, grpc.credentials.createInsecure(), {
  "grpc.service_config": fs.readFileSync(config, "utf8"),
});
const plain = (data) => data;
const deadline = Date.now() + 1000 * Number(seconds);
client.makeUnaryRequest(method, plain, plain, Buffer.from(hex, "hex"), { deadline }, (error) => {
  console.log(grpc.status[error ? error.code : grpc.status.OK]);
  client.close();
});
