import { element } from "./api.js";

export const RIGHT = 0.8; // AUROC from which a concept is said to tell an attribute

// The part of an example that a concept looks at, `width` pixels wide.
export function cropped({ picture, crop: [x, y, side] }, width) {
  const image = element("img", { class: "pixels", src: picture, alt: "" });
  image.addEventListener("load", () => {
    const scale = width / side;
    image.style.width = `${image.naturalWidth * scale}px`;
    image.style.left = `${-x * scale}px`;
    image.style.top = `${-y * scale}px`;
  });
  return image;
}
