use serde_json::Value;

use crate::harness::{Home, Node, fake, free_address};

#[tokio::test]
async fn the_machine_is_described_as_the_node_describes_it() {
    let home = Home::new(&fake(""));
    let detected = home.run(&["detect", "--json"]).await;
    assert_eq!(detected.code, Some(0), "{}", detected.stderr);
    assert!(!home.data_dir().exists(), "looking makes no data directory");
    let detected: Value = serde_json::from_str(&detected.stdout).unwrap();
    let node = Node::start(&home).await;
    let path = "/identity";
    crate::model::eventually("the first look at the machine", async || {
        node.get(path).await.json::<Value>().await.unwrap()["cpu_cores"] != 0
    })
    .await;
    let identity: Value = node.get(path).await.json().await.unwrap();
    for same in
        ["cpu_model", "cpu_cores", "ram_total_mb", "gpu_tier", "node_tier", "gpu_name", "vram_total_mb", "lan_ip"]
    {
        assert_eq!(detected[same], identity[same], "{same}");
    }
    assert!(detected["max_model_params_b_cpu"].is_number() && detected["capabilities"].is_array(), "{detected}");
    assert_eq!(detected["embedded_engine"], cfg!(feature = "embedded"), "{detected}");
}

#[tokio::test]
async fn servers_of_models_are_found_and_told_as_backends() {
    let home = Home::new(&fake(""));
    let node = Node::start(&home).await;
    let address = node.url("").replace("http://", "");
    let text = home.run(&["detect", "--probe", &address, "--probe", &free_address()]).await;
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    let wanted = format!("1 model; as a backend: kind = \"openai\", url = \"http://{address}/v1\"");
    assert!(text.stdout.contains("Bombus") && text.stdout.contains(&wanted), "{}", text.stdout);
    for part in ["processor", "memory", "disk", "gpu tier", "node tier", "largest model"] {
        assert!(text.stdout.lines().any(|line| line.starts_with(part)), "{} lacks {part}", text.stdout);
    }
    let wrong = home.run(&["detect", "--probe", "somewhere"]).await;
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
}
