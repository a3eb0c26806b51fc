//! Image layouts: what tools write is read; what is damaged or strange is refused with its name.

#[allow(dead_code)]
mod common;

use std::fs;
use std::io::Read as _;

use common::*;
use parma_layer::oci::{Digest, Image, Reference};
use serde_json::{Value, json};

/// A layout with one gzip layer under the tag `latest`, and the layer's descriptor.
fn honest() -> (Layout, Value) {
    let mut layout = Layout::new();
    let layer = layout.blob(LAYER_GZIP, &gzip(&tar()));
    let image = layout.image(vec![layer.clone()], &[Digest::of(&tar()).to_string()]);
    layout.tag(image, Some("latest"));
    (layout, layer)
}

fn read_all(image: &Image, index: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    image.open_layer(index)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn references_split_at_the_first_colon_after_the_directory() {
    let parsed = Reference::parse("oci:/tmp/x:docker.io/library/a:1.2").unwrap();
    assert_eq!(
        (parsed.dir.to_str().unwrap(), parsed.tag.as_deref()),
        ("/tmp/x", Some("docker.io/library/a:1.2"))
    );
    assert_eq!(parsed.to_string(), "oci:/tmp/x:docker.io/library/a:1.2");
    assert_eq!(Reference::parse("oci:x").unwrap().tag, None);
    for bad in ["", "x", "oci:", "oci::tag", "oci:x:", "docker://x"] {
        assert!(message(Reference::parse(bad)).contains("write oci:DIR"), "{bad}");
    }
}

#[test]
fn digests_are_sixty_four_lower_case_hex_digits_and_nothing_else() {
    let good = format!("sha256:{}", "0a".repeat(32));
    assert_eq!(Digest::parse(&good).unwrap().to_string(), good);
    for bad in [
        "0a".repeat(32),
        format!("sha256:{}", "0A".repeat(32)),
        format!("sha256:{}", "0a".repeat(31)),
        format!("sha256:{}", "0a".repeat(33)),
        format!("sha256:../../{}", "0".repeat(58)),
        format!("sha512:{}", "0a".repeat(64)),
        String::new(),
    ] {
        assert!(Digest::parse(&bad).is_err(), "{bad}");
    }
}

#[test]
fn an_image_is_read_with_and_without_its_tag() {
    let (layout, _) = honest();
    for tag in [None, Some("latest")] {
        let image = layout.open(tag).unwrap();
        assert_eq!(image.config.env, ["PATH=/bin", "A=1"]);
        assert_eq!(image.config.cmd, ["/bin/sh"]);
        assert!(image.config.entrypoint.is_empty());
        assert_eq!(image.config.volumes, ["/a", "/b"]);
        assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("7:8", "/srv"));
        assert_eq!(image.config.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(read_all(&image, 0).unwrap(), tar());
    }
}

#[test]
fn plain_gzip_zstd_and_docker_layers_give_the_same_tar() {
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    for (media_type, bytes) in
        [(LAYER, tar()), (LAYER_GZIP, gzip(&tar())), (LAYER_ZSTD, zstd(&tar())), (docker, gzip(&tar()))]
    {
        let mut layout = Layout::new();
        let layer = layout.blob(media_type, &bytes);
        let image = layout.image(vec![layer], &[Digest::of(&tar()).to_string()]);
        layout.tag(image, None);
        assert_eq!(read_all(&layout.open(None).unwrap(), 0).unwrap(), tar(), "{media_type}");
    }
}

#[test]
fn docker_manifests_and_configurations_are_read() {
    let mut layout = Layout::new();
    let layer = layout.blob("application/vnd.docker.image.rootfs.diff.tar", &tar());
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Volumes": null, "Env": null},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar()).to_string()]}});
    let config = layout.json("application/vnd.docker.container.image.v1+json", &config);
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": docker, "config": config, "layers": [layer]});
    let manifest = layout.json(docker, &manifest);
    layout.tag(manifest, Some("d"));
    assert_eq!(layout.open(Some("d")).unwrap().layers.len(), 1);
}

#[test]
fn a_nested_index_yields_linux_amd64_past_other_platforms_and_attestations() {
    let mut layout = Layout::new();
    let layer = layout.blob(LAYER, &tar());
    let mut ours = layout.image(vec![layer], &[Digest::of(&tar()).to_string()]);
    ours["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut arm = layout.json(MANIFEST, &json!({}));
    arm["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let mut attestation = layout.json(MANIFEST, &json!({"a": 1}));
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let both = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [arm, ours, attestation]});
    let index = layout.json(INDEX, &both);
    layout.tag(index, Some("multi"));
    assert_eq!(layout.open(Some("multi")).unwrap().manifest.to_string(), ours["digest"]);

    let only_arm = layout.json(INDEX, &json!({"schemaVersion": 2, "manifests": [arm, attestation]}));
    layout.tag(only_arm, Some("arm"));
    let error = message(layout.open(Some("arm")));
    assert!(error.contains("no image for linux/amd64") && error.contains("linux/arm64"), "{error}");
}

#[test]
fn indexes_nested_too_deep_are_refused() {
    let mut layout = Layout::new();
    let mut inner = layout.image(vec![], &[]);
    for _ in 0..6 {
        inner = layout.json(INDEX, &json!({"schemaVersion": 2, "manifests": [inner]}));
    }
    layout.tag(inner, None);
    assert!(message(layout.open(None)).contains("nested deeper"));
}

#[test]
fn a_missing_tag_lists_those_that_exist() {
    let (mut layout, layer) = honest();
    let error = message(layout.open(Some("latset")));
    assert!(error.contains("\"latset\"") && error.contains("there are latest"), "{error}");
    let other = layout.json(MANIFEST, &manifest(&layer, &[]));
    layout.tag(other, Some("other"));
    let error = message(layout.open(None));
    assert!(error.contains("add a tag, one of latest, other"), "{error}");
}

#[test]
fn a_directory_that_is_no_layout_says_how_to_make_one() {
    let dir = tempfile::tempdir().unwrap();
    let error = message(Image::open(&Reference { dir: dir.path().into(), tag: None }));
    assert!(error.contains("no OCI image layout") && error.contains("parma image pull"), "{error}");
    let (layout, _) = honest();
    fs::write(layout.dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"9.0.0"}"#).unwrap();
    assert!(message(layout.open(None)).contains("9.0.0"));
}

#[test]
fn a_missing_blob_is_named() {
    let (layout, layer) = honest();
    let image = layout.open(None).unwrap();
    fs::remove_file(layout.blob_path(layer["digest"].as_str().unwrap())).unwrap();
    let error = message(read_all(&image, 0));
    assert!(
        error.contains(layer["digest"].as_str().unwrap()) && error.contains("copy the image again"),
        "{error}"
    );
    fs::remove_file(layout.blob_path(&image.manifest.to_string())).unwrap();
    assert!(message(layout.open(None)).contains(&image.manifest.to_string()));
}

#[test]
fn a_blob_with_a_changed_byte_fails_before_its_end() {
    for (media_type, bytes) in [(LAYER, tar()), (LAYER_GZIP, gzip(&tar())), (LAYER_ZSTD, zstd(&tar()))] {
        let mut layout = Layout::new();
        let layer = layout.blob(media_type, &bytes);
        let image = layout.image(vec![layer.clone()], &[Digest::of(&tar()).to_string()]);
        layout.tag(image, None);
        let image = layout.open(None).unwrap();
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            let path = layout.blob_path(layer["digest"].as_str().unwrap());
            replace(&path, |b| b[at] ^= 1);
            assert!(read_all(&image, 0).is_err(), "{media_type} byte {at}");
            replace(&path, |b| b[at] ^= 1);
        }
        assert_eq!(read_all(&image, 0).unwrap(), tar());
    }
}

#[test]
fn a_reader_that_stops_at_the_end_marker_still_learns_of_damage() {
    let (layout, layer) = honest();
    let image = layout.open(None).unwrap();
    let mut reader = image.open_layer(0).unwrap();
    reader.read_exact(&mut [0; 512]).unwrap();
    reader.finish().unwrap();
    replace(&layout.blob_path(layer["digest"].as_str().unwrap()), |b| *b.last_mut().unwrap() ^= 1);
    let mut reader = image.open_layer(0).unwrap();
    let _ = reader.read_exact(&mut [0; 512]);
    assert!(reader.finish().is_err());
}

#[test]
fn a_shortened_or_lengthened_blob_is_refused_by_its_size() {
    let (layout, layer) = honest();
    let image = layout.open(None).unwrap();
    let path = layout.blob_path(layer["digest"].as_str().unwrap());
    replace(&path, |b| b.push(0));
    assert!(message(read_all(&image, 0)).contains("the image says"));
    replace(&path, |b| b.truncate(b.len() - 2));
    assert!(message(read_all(&image, 0)).contains("the image says"));
}

#[test]
fn bytes_after_the_compressed_stream_do_not_pass_unhashed() {
    let mut layout = Layout::new();
    let mut bytes = zstd(&tar());
    bytes.extend_from_slice(b"trailing");
    let layer = layout.blob(LAYER_ZSTD, &bytes);
    let image = layout.image(vec![layer], &[Digest::of(&tar()).to_string()]);
    layout.tag(image, None);
    assert!(read_all(&layout.open(None).unwrap(), 0).is_err());
}

#[test]
fn a_tar_that_is_not_the_diff_id_fails_at_its_end() {
    let mut layout = Layout::new();
    let layer = layout.blob(LAYER_GZIP, &gzip(&tar()));
    let image = layout.image(vec![layer], &[Digest::of(b"another").to_string()]);
    layout.tag(image, None);
    assert!(message(read_all(&layout.open(None).unwrap(), 0)).contains("the configuration says"));
}

#[test]
fn a_manifest_with_a_wrong_digest_is_refused() {
    let (layout, _) = honest();
    let manifest = layout.open(None).unwrap().manifest.to_string();
    let path = layout.blob_path(&manifest);
    replace(&path, |b| {
        let at = b.windows(4).position(|w| w == b"gzip").unwrap();
        b[at..at + 4].copy_from_slice(b"zstd");
    });
    let error = message(layout.open(None));
    assert!(error.contains(&manifest) && error.contains("the image says"), "{error}");
}

#[test]
fn unknown_media_types_are_refused_by_name() {
    let mut layout = Layout::new();
    let layer = layout.blob("application/vnd.example.squashfs", b"x");
    let image = layout.image(vec![layer], &[Digest::of(b"x").to_string()]);
    layout.tag(image, Some("layer"));
    assert!(message(layout.open(Some("layer"))).contains("\"application/vnd.example.squashfs\""));

    let config = layout.json("application/vnd.example.config", &json!({}));
    let artifact = layout.json(MANIFEST, &manifest(&config, &[]));
    layout.tag(artifact, Some("config"));
    assert!(message(layout.open(Some("config"))).contains("\"application/vnd.example.config\""));

    let strange = layout.json("application/x-strange", &json!({}));
    layout.tag(strange, Some("manifest"));
    assert!(message(layout.open(Some("manifest"))).contains("\"application/x-strange\""));
}

#[test]
fn a_document_that_names_another_type_than_its_descriptor_is_refused() {
    let mut layout = Layout::new();
    let confused = layout.json(
        MANIFEST,
        &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [],
        "config": layout.json(CONFIG, &json!({})), "layers": []}),
    );
    layout.tag(confused, None);
    assert!(message(layout.open(None)).contains("says it is"));
}

#[test]
fn truncated_and_oversize_json_is_refused_with_the_file() {
    let (layout, _) = honest();
    let index = layout.dir.path().join("index.json");
    replace(&index, |b| b.truncate(b.len() / 2));
    let error = message(layout.open(None));
    assert!(error.contains("index.json") && error.contains("malformed JSON"), "{error}");
    fs::write(&index, vec![b' '; (4 << 20) + 1]).unwrap();
    assert!(message(layout.open(None)).contains("larger than"));

    let (mut layout, _) = honest();
    let mut huge = layout.json(MANIFEST, &json!({}));
    huge["size"] = json!(u64::MAX);
    layout.tag(huge, Some("huge"));
    assert!(message(layout.open(Some("huge"))).contains("the limit is"));
    let truncated = layout.blob(MANIFEST, br#"{"schemaVersion":2,"#);
    layout.tag(truncated, Some("truncated"));
    assert!(message(layout.open(Some("truncated"))).contains("malformed JSON"));
}

#[test]
fn layers_and_diff_ids_must_agree_in_number() {
    let mut layout = Layout::new();
    let layer = layout.blob(LAYER, &tar());
    let none = layout.image(vec![layer], &[]);
    layout.tag(none, Some("none"));
    assert!(message(layout.open(Some("none"))).contains("0 diff ids"));
    let empty = layout.image(vec![], &[]);
    layout.tag(empty, Some("empty"));
    assert!(message(layout.open(Some("empty"))).contains("no layers"));
}

#[test]
fn another_platforms_image_is_refused() {
    let mut layout = Layout::new();
    let config = layout.json(
        CONFIG,
        &json!({"architecture": "arm64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}),
    );
    let image = layout.json(MANIFEST, &manifest(&config, &[]));
    layout.tag(image, None);
    assert!(message(layout.open(None)).contains("linux/arm64"));
}

#[test]
fn symbolic_links_and_pipes_in_the_layout_are_not_followed() {
    let (layout, layer) = honest();
    let image = layout.open(None).unwrap();
    let path = layout.blob_path(layer["digest"].as_str().unwrap());
    let aside = layout.dir.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &path).unwrap();
    assert!(image.open_layer(0).is_err());
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(message(image.open_layer(0).map(drop)).contains("not a regular file"));
}

#[test]
fn a_nul_in_the_configuration_is_refused() {
    let mut layout = Layout::new();
    let layer = layout.blob(LAYER, &tar());
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Env": ["A=\u{0}B"]},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar()).to_string()]}});
    let config = layout.json(CONFIG, &config);
    let image = layout.json(MANIFEST, &manifest(&config, &[layer]));
    layout.tag(image, None);
    assert!(message(layout.open(None)).contains("NUL"));
}
