//! Module names of Stable Diffusion: with dots as in diffusers, with underscores as in kohya's files (those of SDXL in
//! the words of Stability's own code; they are read, and written as diffusers calls them, which readers know too).

/// The models of a pipeline, as diffusers calls them, and kohya's prefix for each. The first that fits is taken
/// for writing; a pipeline with two text encoders numbers them.
const MODELS: [(&str, &str); 4] = [
    ("unet", "lora_unet_"),
    ("text_encoder", "lora_te_"),
    ("text_encoder", "lora_te1_"),
    ("text_encoder_2", "lora_te2_"),
];

/// The parts of module paths that have underscores themselves; a part that is none of these has none.
const PARTS: [&str; 40] = [
    "down_blocks",
    "up_blocks",
    "mid_block",
    "transformer_blocks",
    "proj_in",
    "proj_out",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "add_k_proj",
    "add_v_proj",
    "conv_in",
    "conv_out",
    "conv_shortcut",
    "time_emb_proj",
    "time_embedding",
    "add_embedding",
    "class_embedding",
    "linear_1",
    "linear_2",
    "text_model",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "token_embedding",
    "position_embedding",
    "text_projection",
    "final_layer_norm",
    // Stability's names, which kohya's SDXL files have.
    "input_blocks",
    "middle_block",
    "output_blocks",
    "in_layers",
    "out_layers",
    "emb_layers",
    "skip_connection",
    "time_embed",
    "label_emb",
];
/// The parts without underscores.
const PLAIN: [&str; 19] = [
    "attentions",
    "resnets",
    "downsamplers",
    "upsamplers",
    "conv",
    "conv1",
    "conv2",
    "attn1",
    "attn2",
    "ff",
    "net",
    "proj",
    "encoder",
    "layers",
    "mlp",
    "fc1",
    "fc2",
    "op",
    "out",
];

/// kohya's name of a module, `None` where it belongs to no model of a pipeline. `two`: the pipeline has two text
/// encoders.
pub fn underscored(module: &str, two: bool) -> Option<String> {
    let (model, rest) = module.split_once('.')?;
    let prefix = match (model, two) {
        ("text_encoder", true) => "lora_te1_",
        _ => MODELS.iter().find(|(name, _)| *name == model)?.1,
    };
    Some(format!("{prefix}{}", rest.replace('.', "_")))
}

/// The module of kohya's name, `None` where its parts are none of Stable Diffusion's.
pub fn dotted(name: &str) -> Option<String> {
    let (model, rest) =
        MODELS.iter().find_map(|(model, prefix)| Some((model, name.strip_prefix(prefix)?)))?;
    let mut parts = vec![*model];
    let mut left = rest;
    while !left.is_empty() {
        let part = next_part(left)?;
        parts.push(part);
        left = left[part.len()..].strip_prefix('_').unwrap_or(&left[part.len()..]);
    }
    match &parts[..] {
        [_] => None,
        ["unet", rest @ ..] => Some(format!("unet.{}", from_sgm(rest)?)),
        _ => Some(parts.join(".")),
    }
}

/// Resnets and attentions of a block of SDXL in Stability's count, which has no levels.
const LAYERS_PER_BLOCK: usize = 2;

/// A path of the UNet in the words of diffusers, where it is one in Stability's (SDXL's; others of its models differ).
/// `None` where its numbers name nothing.
fn from_sgm(parts: &[&str]) -> Option<String> {
    let number = |text: &str| text.parse::<usize>().ok();
    let (place, rest) = match parts {
        ["input_blocks", "0", "0"] => return Some("conv_in".into()),
        ["out", "2"] => return Some("conv_out".into()),
        ["time_embed", layer @ ("0" | "2")] => {
            return Some(format!("time_embedding.linear_{}", number(layer)? / 2 + 1));
        }
        ["label_emb", "0", layer @ ("0" | "2")] => {
            return Some(format!("add_embedding.linear_{}", number(layer)? / 2 + 1));
        }
        ["input_blocks", block, kind, rest @ ..] => {
            let at = number(block)?.checked_sub(1)?;
            let (block, layer) = (at / (LAYERS_PER_BLOCK + 1), at % (LAYERS_PER_BLOCK + 1));
            let place = match (*kind, rest) {
                ("0", ["op"]) => return Some(format!("down_blocks.{block}.downsamplers.0.conv")),
                ("0", _) => format!("resnets.{layer}"),
                ("1", _) => format!("attentions.{layer}"),
                _ => return None,
            };
            (format!("down_blocks.{block}.{place}"), rest)
        }
        ["middle_block", kind, rest @ ..] => {
            let place = match *kind {
                "0" => "resnets.0",
                "1" => "attentions.0",
                "2" => "resnets.1",
                _ => return None,
            };
            (format!("mid_block.{place}"), rest)
        }
        ["output_blocks", block, kind, rest @ ..] => {
            let at = number(block)?;
            let (block, layer) = (at / (LAYERS_PER_BLOCK + 1), at % (LAYERS_PER_BLOCK + 1));
            let place = match (*kind, rest) {
                ("1" | "2", ["conv"]) => "upsamplers.0".to_owned(),
                ("0", _) => format!("resnets.{layer}"),
                ("1", _) => format!("attentions.{layer}"),
                _ => return None,
            };
            (format!("up_blocks.{block}.{place}"), rest)
        }
        _ => return Some(parts.join(".")),
    };
    let rest = match rest {
        ["in_layers", "2"] => "conv1".to_owned(),
        ["out_layers", "3"] => "conv2".to_owned(),
        ["emb_layers", "1"] => "time_emb_proj".to_owned(),
        ["skip_connection"] => "conv_shortcut".to_owned(),
        [] | ["in_layers" | "out_layers" | "emb_layers" | "skip_connection", ..] => return None,
        rest => rest.join("."),
    };
    Some(format!("{place}.{rest}"))
}

/// The part a name begins with: the longest known one, or a number.
fn next_part(name: &str) -> Option<&str> {
    let ends =
        |part: &str| name.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    if let Some(part) = PARTS.iter().chain(&PLAIN).filter(|part| ends(part)).max_by_key(|part| part.len()) {
        return Some(&name[..part.len()]);
    }
    let digits = name.bytes().take_while(u8::is_ascii_digit).count();
    (digits > 0 && ends(&name[..digits])).then(|| &name[..digits])
}
